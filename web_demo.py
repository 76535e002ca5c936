"""
The page people show to their friends: pick a model, write a line, and the lyric goes on.

    python web_demo.py                                         # every out* folder here; opens http://127.0.0.1:7860
    python web_demo.py --model_dir=/data/models --port=8000    # the models of another place too
    DOOR=anna:secret python web_demo.py --auth=DOOR --share    # a public link, behind a password

Other programs ask the same server: Client('http://127.0.0.1:7860').predict('末班车开进了雨里', api_name='/complete')
"""
import os
import random
import re

import configurator

model_dir = ''  # a model folder, or a folder of them, besides the out* folders here; '' = none
host = '127.0.0.1'  # address to listen on; 127.0.0.1 = this machine alone
port = 7860  # where the page stands: http://127.0.0.1:7860
open_browser = True  # open it in the browser
share = False  # True: a public link through gradio.live
auth = ''  # NAME of the environment variable that holds user:password; '' = no password
cache_gb = 4.0  # gigabytes of weights kept loaded; the model least recently used leaves first
visitors = 10  # generations side by side; the next ones wait in line
queue_size = 40  # places in that line; who comes later is told so
device = 'auto'  # auto, cpu, cuda, mps
dtype = 'auto'  # auto, float32, bfloat16, float16; int8: weights of 8 bits, on a CPU the fastest for one song at a time
configurator.configure(globals())
login = os.environ.get(auth, '') if auth else ''
if auth and not (login.partition(':')[0] and login.partition(':')[2]):
    raise SystemExit(f'--auth={auth}: the environment variable {auth} must hold user:password.')
if model_dir and not os.path.isdir(model_dir):
    raise SystemExit(f'--model_dir={model_dir}: no such folder.')

# Gradio reads these when it is imported: tell nobody about visitors, keep no table of their requests.
os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1', GRADIO_ANALYTICS_MAX_EVENTS='100',
                  GRADIO_ANALYTICS_CACHE_FREQUENCY=str(1 << 60))
import gradio as gr  # after configure, so that --help and a mistyped setting answer at once

import checkpoint
import machine
from serving import DEFAULTS, LIMITS, LOOK_BACK, Gate, Refusal, Shelf, clean

WORDS = {  # Chinese, English; Gradio's page picks by the browser's language
    'subtitle': ('你起一句，它接着往下唱。', 'You begin a line, it sings on.'),
    'model': ('模型', 'Model'), 'line': ('写一句开头……', 'Write a line …'), 'tuning': ('调音', 'Tuning'),
    'song': ('接着上文写', 'Go on with the song'),
    'max_new_tokens': ('长度（词元）', 'Length (tokens)'), 'temperature': ('温度（0 = 最稳）', 'Temperature (0 = plainest)'),
    'top_k': ('top-k（0 = 不限）', 'top-k (0 = off)'), 'top_p': ('top-p（1 = 不限）', 'top-p (1 = off)'),
    'repetition_penalty': ('重复惩罚（1 = 无）', 'Repetition penalty (1 = off)'), 'num_samples': ('一次写几稿', 'Drafts'),
    'seed': ('种子（0 = 每次不同）', 'Seed (0 = always new)')}
NAMES = {'out-lyric-char': ('字', 'characters'), 'out-lyric-word': ('词', 'words'),
         'out-lyric-ft': ('中文 GPT-2', 'fine-tuned'),
         'out-lyric-ft-word': ('中文 GPT-2 · 词', 'fine-tuned, words'), 'out-quickstart': ('小样', 'quickstart')}
LOOK = {  # of Gradio's theme: by day, by night. Paper, ink, and one seal's red.
    'body_background_fill': ('#f5f0e6', '#1a1917'), 'body_text_color': ('#2f2b26', '#e2dbcd'),
    'body_text_color_subdued': ('#877e70', '#968d7f'), 'block_label_text_color': ('#877e70', '#968d7f'),
    'block_background_fill': ('transparent', 'transparent'), 'block_border_color': ('transparent', 'transparent'),
    'block_title_text_color': ('#877e70', '#968d7f'), 'input_background_fill': ('#fdfaf3', '#24221f'),
    'border_color_primary': ('#e3dac8', '#3a362f'), 'input_border_color': ('#e3dac8', '#3a362f'),
    'background_fill_primary': ('#fdfaf3', '#24221f'), 'background_fill_secondary': ('#f5f0e6', '#1a1917'),
    'slider_color': ('#a8453a', '#c9695c'), 'checkbox_background_color_selected': ('#a8453a', '#c9695c'),
    'checkbox_border_color_selected': ('#a8453a', '#c9695c'), 'checkbox_border_color_focus': ('#a8453a', '#c9695c')}

# --- what happens on the page -----------------------------------------------------------------------------------------

def say(request, chinese, english):
    """The text in the language the browser asks for."""
    return chinese if request.headers.get('accept-language', '').lower().startswith('zh') else english


def model_list(chosen, request: gr.Request):
    """The list of models as it is now; keeps the visitor's choice where it still stands."""
    rows = []
    for name, (parameters, loss) in shelf.facts().items():
        shown = say(request, *NAMES[name]) if name in NAMES else name.removeprefix('out-')
        size = f'{parameters / 1e6:,.1f} M'
        rows.append((f'{shown}  ·  {size}' + (f'  ·  val {loss:.3f}' if loss is not None else ''), name))
    names = [name for _, name in rows]
    return gr.update(choices=rows, value=chosen if chosen in names else next(iter(names), None))


def welcome(chosen, request: gr.Request):
    """A new visitor: the models, and the lines of prompt.txt to click on."""
    models = model_list(chosen, request)
    if not models['choices']:
        return models, gr.update(examples=None, placeholder=say(
            request, '还没有模型。先训练一个：\n\n`python train.py config/quickstart.py`\n\n然后刷新这一页。',
            'There is no model yet. Train one:\n\n`python train.py config/quickstart.py`\n\nthen reload this page.'))
    path = 'prompt.txt' if os.path.exists('prompt.txt') else os.path.join(configurator.HERE, 'prompt.txt')
    with open(path, encoding='utf-8-sig') as f:
        lines = [line.strip() for line in f if line.strip()]
    return models, gr.update(examples=[{'text': line} for line in lines[:6]],
                             placeholder=say(request, '写一句，或点一句：', 'Write a line, or take one of these:'))


def sheet(turns):
    """
    The conversation as Chatbot messages. Gradio renders messages as HTML even with render_markdown=False (and then
    sanitizes them: <b> would vanish); an invisible word joiner behind < and & leaves a browser nothing but text to see.
    """
    messages = []
    for turn in turns:
        for role, text in [('user', turn['line']), *(('assistant', draft) for draft in turn['drafts'])]:
            if text := text.strip('\n'):
                text = re.sub(r'[<&](?=[!/?#A-Za-z0-9])', '\\g<0>\u2060', text)
                messages.append({'role': role, 'content': {'type': 'text', 'text': text}})
    if turns and turns[-1]['keep'] and any(turns[-1]['drafts']):  # several drafts: one may be chosen
        messages[-1]['options'] = [{'label': turns[-1]['keep'].format(i + 1), 'value': str(i)}
                                   for i in range(len(turns[-1]['drafts']))]
    return messages


def settle(turns, request: gr.Request):
    """The page at rest, after the end or after Stop: drafts to choose from, and the button that sends."""
    if turns and len(turns[-1]['drafts']) > 1:
        turns[-1]['keep'] = say(request, '留第 {} 稿', 'Keep draft {}')
    return sheet(turns), gr.update(submit_btn=True, stop_btn=False), turns[-1]['note'] if turns else ''


def answer(request: gr.Request, line, turns, name, song, *numbers):
    """Sing on from the visitor's line, or from the song so far. `turns` is the visitor's own, changed in place."""
    options = dict(zip(LIMITS, numbers))
    options['seed'] = options['seed'] or random.randrange(1, 2**31)
    turn = {'line': line, 'drafts': [], 'keep': '', 'note': f'{say(request, "种子", "seed")} {options["seed"]}'}
    try:
        turn['line'] = line = clean(line)
        before = ''
        if song and turns:
            turns[-1]['drafts'] = turns[-1]['drafts'][:1]  # where none was chosen the song goes on from the first
            before = turns[-1]['text'] + ''.join(turns[-1]['drafts']).rstrip()
        turn['text'] = '\n'.join(filter(None, (before, line)))[-LOOK_BACK:]
        if not turn['text']:
            raise Refusal('先写一句。', 'Write a line first.')
        turns[:] = turns[-50:] + [turn]
        yield sheet(turns), gr.update(value='', submit_btn=False, stop_btn=True), ''
        for turn['drafts'] in shelf.sing(name, turn['text'], options):
            yield sheet(turns), gr.skip(), gr.skip()
        if not any(turn['drafts']):
            turn['note'] = say(request, '它觉得这首歌已经唱完了。', 'To the model this song is over.')
    except Refusal as refusal:
        turns[:] = [t for t in turns if t is not turn]
        gr.Warning(say(request, *refusal.args), title=say(request, '提示', 'Note'))
        yield sheet(turns), gr.update(value=turn['line']), ''
    yield settle(turns, request)


def again(request: gr.Request, line, turns, *rest):
    """Sing the last turn anew."""
    if turns:
        yield from answer(request, turns.pop()['line'], turns, *rest)


def undo(turns, request: gr.Request):
    """Take the last turn back; its line returns to the box."""
    line = turns.pop()['line'] if turns else ''
    chat, box, note = settle(turns, request)
    return chat, {**box, 'value': line}, note


def clear(turns, request: gr.Request):
    turns.clear()
    return settle(turns, request)


def example(event: gr.SelectData):
    """The line of prompt.txt that was clicked."""
    return event.value['text']


def keep(turns, event: gr.SelectData):
    """Keep the draft that was chosen: the song goes on from it."""
    if turns and turns[-1]['keep'] and str(event.value) in map(str, range(len(turns[-1]['drafts']))):
        turns[-1].update(drafts=[turns[-1]['drafts'][int(event.value)]], keep='')
    return sheet(turns)


def complete(prompt: str, model: str = '', max_new_tokens: int = DEFAULTS['max_new_tokens'],
             temperature: float = DEFAULTS['temperature'], top_k: int = DEFAULTS['top_k'],
             top_p: float = DEFAULTS['top_p'], repetition_penalty: float = DEFAULTS['repetition_penalty'],
             seed: int = DEFAULTS['seed']) -> str:
    """The continuation of `prompt` by `model` (an out* name; '' = the first), growing while it is written."""
    options = {'max_new_tokens': max_new_tokens, 'temperature': temperature, 'top_k': top_k, 'top_p': top_p,
               'repetition_penalty': repetition_penalty, 'num_samples': 1, 'seed': seed or random.randrange(1, 2**31)}
    try:
        if not (text := clean(prompt)):
            raise Refusal('没有开头。', 'prompt is empty.')
        for texts in shelf.sing(model or next(iter(shelf.names()), ''), text, options):
            yield texts[0]
    except Refusal as refusal:
        raise gr.Error(str(refusal), print_exception=False) from refusal


# --- the page itself --------------------------------------------------------------------------------------------------

device = machine.pick_device(device)
shelf = Shelf(model_dir, device, machine.pick_dtype(dtype, device, int8=True), cache_gb * 1e9)
words = gr.I18n(zh={k: v[0] for k, v in WORDS.items()}, en={k: v[1] for k, v in WORDS.items()})

theme = gr.themes.Base(font=['system-ui', 'PingFang SC', 'Noto Sans CJK SC', 'Microsoft YaHei', 'sans-serif']).set(
    **{name: day for name, (day, _) in LOOK.items()}, **{name + '_dark': night for name, (_, night) in LOOK.items()})

with gr.Blocks(title='thuclGPT', analytics_enabled=False) as page:
    turns = gr.State([], time_to_live=24 * 3600)
    gr.Markdown('thuclGPT', elem_id='title')
    gr.Markdown(words('subtitle'), elem_id='subtitle')
    models = gr.Dropdown([], label=words('model'), filterable=False, elem_id='models', interactive=True)
    chat = gr.Chatbot(show_label=False, render_markdown=False, latex_delimiters=[], allow_tags=False, buttons=['copy'],
                      group_consecutive_messages=False, layout='panel', height='56vh', feedback_options=None,
                      elem_id='chat')
    box = gr.Textbox(show_label=False, placeholder=words('line'), max_lines=6, submit_btn=True, elem_id='box')
    with gr.Row(elem_id='below'):
        song = gr.Checkbox(True, label=words('song'), container=False, elem_id='song')
        note = gr.Markdown('', elem_id='note')
    with gr.Accordion(words('tuning'), open=False, elem_id='tuning'), gr.Row():
        numbers = [gr.Number(default, label=words(name), precision=0, minimum=low, maximum=high, min_width=240)
                   if name == 'seed' else
                   gr.Slider(low, high, default, step=step, label=words(name), min_width=240)
                   for name, (low, high, default, step) in LIMITS.items()]

    private = dict(api_visibility='private', show_progress='hidden')
    ask = dict(inputs=[box, turns, models, song, *numbers], outputs=[chat, box, note], concurrency_id='sing', **private)
    page.load(welcome, models, [models, chat], **private)
    models.focus(model_list, models, models, **private)
    picked = chat.example_select(example, None, box, **private)
    singing = [box.submit(answer, **ask), picked.then(answer, **ask), chat.retry(again, **ask)]
    for trigger, function in ((box.stop, settle), (chat.undo, undo), (chat.clear, clear)):
        trigger(function, turns, [chat, box, note], cancels=singing, **private)
    chat.option_select(keep, turns, chat, **private)
    for event in singing:
        event.failure(settle, turns, [chat, box, note], **private)
    gr.api(complete, concurrency_id='sing', concurrency_limit=visitors)

page.queue(max_size=queue_size, default_concurrency_limit=visitors)
page.launch(server_name=host, server_port=port, inbrowser=open_browser, share=share, ssr_mode=False, mcp_server=False,
            auth=tuple(login.split(':', 1)) if login else None, i18n=words, theme=theme,
            css_paths=os.path.join(configurator.HERE, 'web_demo.css'), footer_links=[], run_history=False,
            enable_monitoring=False, pwa=False, state_session_capacity=500, app_kwargs={'middleware': [(Gate, (), {})]})
