"""The README's promises about itself: its commands exist, and its two languages say the same."""
import re
import shlex
from pathlib import Path

import pytest

from configurator import defined_settings

ROOT = Path(__file__).parent.parent
PAGES = ('README.md', 'README.zh.md')


def commands(text):
    """Every command line in the code blocks and the table cells of a page."""
    blocks = [block for kind, block in re.findall(r'^```(\w*)\n(.*?)^```$', text, re.S | re.M) if kind in ('', 'sh')]
    lines = [line.strip() for block in blocks for line in block.splitlines()] + re.findall(r'`((?:python|make|torchrun) [^`]*)`', text)
    return [line.split(' #')[0].strip() for line in lines if re.match(r'(?:[A-Z_]+=\S+ )?(python|make|torchrun) ', line)]


@pytest.mark.parametrize('page', PAGES)
def test_every_command_names_a_script_and_settings_that_exist(page):
    found = commands((ROOT / page).read_text(encoding='utf-8'))
    assert len(found) > 20
    for line in found:
        words = [w for w in shlex.split(line, comments=True) if not re.match(r'[A-Z_]+=', w)]
        if words[0] == 'make':
            assert re.search(rf'^{words[1]}:', (ROOT / 'Makefile').read_text(), re.M), line
            continue
        script = next(w for w in words if w.endswith('.py'))
        assert (ROOT / script).is_file(), line
        settings = defined_settings(str(ROOT / script))
        for word in words[words.index(script) + 1:]:
            if word.startswith('--'):
                assert word[2:].split('=')[0] in settings, f'{line}: {word}'
            else:
                assert (ROOT / word).is_file() and word.startswith('config/'), f'{line}: {word}'


@pytest.mark.parametrize('config', sorted(ROOT.glob('config/*.py')), ids=lambda p: p.stem)
def test_every_config_sets_only_settings_of_train(config):
    names = {line.split('=')[0].strip() for line in config.read_text().splitlines() if re.match(r'[a-z]\w* *=', line)}
    assert names and names <= set(defined_settings(str(ROOT / 'train.py')))


def test_both_languages_have_the_same_headings_commands_and_figures():
    english, chinese = ((ROOT / page).read_text(encoding='utf-8') for page in PAGES)

    def outline(text):
        prose = re.sub(r'```.*?```', '', text, flags=re.S)
        return [len(marks) for marks in re.findall(r'^(#+) ', prose, re.M)]

    def figures(text):
        """The numbers in table rows, which neither language may change alone."""
        return [re.findall(r'\d+(?:[.,]\d+)*', row) for row in re.findall(r'^\|.*\|$', text, re.M)]
    assert outline(english) == outline(chinese)
    assert commands(english) == commands(chinese)
    assert figures(english) == figures(chinese)
