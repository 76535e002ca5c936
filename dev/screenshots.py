"""
Takes the README's picture of the page, docs/web_demo.png, with a real model; and the same page at a phone's width, by
night and in English, to be looked at.

    python dev/screenshots.py                       # the newest out* folder here; needs chromium and pip install playwright
    python dev/screenshots.py --line="风吹过旧码头" --seed=7 --folder=/tmp/shots
"""
import os
import socket
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
import configurator

line = '末班车开进了雨里'  # the line that is sent
seed = 8  # of the song
length = 90  # tokens
folder = ''  # where the other pictures go; '' = nowhere, docs/web_demo.png alone
chromium = '/usr/bin/chromium'  # the browser
configurator.configure(globals())


def shoot(browser, url, path, **look):
    """One conversation, pictured in `path`; `look` goes to Playwright's new_context."""
    page = browser.new_context(**look).new_page()
    page.goto(url)
    page.wait_for_selector('#chat .example')
    page.click('#tuning button')
    for place, value in ((0, length), (6, seed)):
        field = page.locator('#tuning input[type=number]').nth(place)
        field.fill(str(value))
        field.blur()
    page.click('#tuning button')
    page.fill('#box textarea', line)
    page.click('#box .submit-button')
    page.wait_for_selector('#chat [aria-label="Retry"], #chat [aria-label="重试"]')
    page.evaluate('document.querySelector("#chat [role=log]").scrollTop = 0')
    page.mouse.move(0, 0)
    time.sleep(1)
    page.screenshot(path=path)
    print(f'{path}: {os.path.getsize(path) / 1000:,.0f} kB')


from playwright.sync_api import sync_playwright

with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
server = subprocess.Popen([sys.executable, os.path.join(configurator.HERE, 'web_demo.py'), f'--port={port}',
                           '--open_browser=False'])
try:
    while True:
        try:
            urllib.request.urlopen(f'http://127.0.0.1:{port}').close()
            break
        except OSError:
            if server.poll() is not None:
                raise SystemExit('web_demo.py did not start.')
            time.sleep(0.2)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
        desk, phone = {'width': 1280, 'height': 900}, {'width': 390, 'height': 844}
        url, docs = f'http://127.0.0.1:{port}', os.path.join(configurator.HERE, 'docs')
        os.makedirs(docs, exist_ok=True)
        shoot(browser, url, os.path.join(docs, 'web_demo.png'), viewport=desk, locale='zh-CN')
        if folder:
            os.makedirs(folder, exist_ok=True)
            shoot(browser, url, os.path.join(folder, 'phone.png'), viewport=phone, locale='zh-CN')
            shoot(browser, url, os.path.join(folder, 'night.png'), viewport=desk, locale='en-US', color_scheme='dark')
finally:
    server.terminate()
