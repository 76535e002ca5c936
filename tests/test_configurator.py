"""Settings: what overrides what, and what the user reads after a mistake."""
import sys

import pytest
from hypothesis import given, strategies as st

import configurator

ANYTHING = st.text('aZ019.-+=_\'"\\[](){},:#%{} \n\t\r\0eEjJxbnN风Ａ\u2028\ud800\U0001f600')
SCRIPT = '''"""A script of two lines.

    python script.py
"""
steps = 10  # how many
rate = 1e-3  # how fast
name = 'plain'  # what it is called
loud = False  # say it aloud
_hidden = 3  # no setting
settings = configure(globals())
later = 5  # set after the call: no setting
'''


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """configure('--steps=3', ...): the script's globals after the call."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT, encoding='utf-8')

    def configure(*argv):
        script = {'__file__': str(path), '__name__': '__main__',
                  'configure': lambda names: configurator.configure(names, list(argv))}
        exec(compile(SCRIPT, str(path), 'exec'), script)
        return script
    return configure


def mistake(call, *argv):
    """The line that a mistaken command line ends in."""
    with pytest.raises(SystemExit) as end:
        call(*argv)
    assert isinstance(end.value.code, str) and '\n' not in end.value.code, 'one line, and a non-zero exit'
    return end.value.code


def test_without_arguments_the_defaults_stand(configure):
    assert configure()['settings'] == {'steps': 10, 'rate': 1e-3, 'name': 'plain', 'loud': False}


def test_a_flag_sets_the_global_and_the_returned_settings(configure):
    script = configure('--steps=3', '--rate=0.5', '--name=new', '--loud=True')
    assert (script['steps'], script['rate'], script['name'], script['loud']) == (3, 0.5, 'new', True)
    assert script['settings'] == {'steps': 3, 'rate': 0.5, 'name': 'new', 'loud': True}


def test_flags_beat_files_whatever_the_order(configure, tmp_path):
    (tmp_path / 'a.py').write_text('steps = 1\nname = "file"\n', encoding='utf-8')
    for argv in (('a.py', '--steps=2'), ('--steps=2', 'a.py')):
        script = configure(*argv)
        assert (script['steps'], script['name']) == (2, 'file')


def test_a_later_file_beats_an_earlier_one(configure, tmp_path):
    (tmp_path / 'a.py').write_text('steps = 1\nrate = 1.0\n', encoding='utf-8')
    (tmp_path / 'b.py').write_text('steps = steps + 1\n', encoding='utf-8')
    script = configure('a.py', 'b.py')
    assert (script['steps'], script['rate']) == (2, 1.0)


def test_config_files_may_compute_and_import_and_keep_helpers(configure, tmp_path):
    (tmp_path / 'a.py').write_text('import math\n_half = rate / 2\nrate = _half\nsteps = math.floor(2.5)\n', encoding='utf-8')
    script = configure('a.py')
    assert (script['rate'], script['steps']) == (5e-4, 2)


def test_a_config_file_is_found_beside_the_scripts_from_any_folder(configure, tmp_path):
    assert "unknown setting 'out_dir'" in mistake(configure, 'config/quickstart.py'), 'it was found, and it is for train.py'


def test_whole_numbers_widen_to_float_and_whole_floats_pass_for_numbers(configure):
    script = configure('--rate=1', '--steps=1e4')
    assert script['rate'] == 1.0 and type(script['rate']) is float
    assert script['steps'] == 10000 and type(script['steps']) is int


def test_learning_rate_1_is_no_mistake(configure):
    """In nanoGPT --learning_rate=1 ended in a bare AssertionError: 1 is an int, the default a float."""
    assert configure('--rate=1')['rate'] == 1.0


def test_a_bare_flag_is_true_and_false_is_spelled_either_way(configure):
    assert configure('--loud')['loud'] is True
    for text, value in (('true', True), ('True', True), ('false', False), ('FALSE', False)):
        assert configure(f'--loud={text}')['loud'] is value


@pytest.mark.parametrize('text', ['a=b', '123', '', '--x', 'None', '"quoted"', '风吹过\n旧码头', "it's", '1e4', 'True'])
def test_text_is_taken_as_it_stands(configure, text):
    """In nanoGPT --start=123 became a number and --start=a=b an AssertionError."""
    assert configure(f'--name={text}')['name'] == text


@given(ANYTHING)
def test_any_text_at_all_is_taken_as_it_stands(text):
    assert configurator.parse('name', text, 'plain', '=', '--name') == text


@given(ANYTHING, st.sampled_from([1, 1.5, True]))
def test_any_text_for_a_number_gives_its_type_or_one_line(text, default):
    try:
        assert type(configurator.parse('n', text, default, '=', '--n')) is type(default)
    except SystemExit as end:
        assert end.code.startswith('--n: n ')


@pytest.mark.parametrize('argv, says', [
    (['--stepz=3'], ['--stepz=3', "'stepz'", 'steps']),
    (['--zzz=3'], ["'zzz'", '--help']),
    (['--steps=3.5'], ['--steps=3.5', 'whole number', '3.5']),
    (['--steps=many'], ['whole number', 'many']),
    (['--steps=True'], ['whole number', 'True']),
    (['--steps=[1]'], ['whole number']),
    (['--rate=fast'], ['a number', 'fast']),
    (['--loud=1'], ['True or False', '1']),
    (['--loud=yes'], ['True or False', 'yes']),
    (['--steps'], ['--steps', 'needs a value', '--steps=10']),
    (['--name'], ['needs a value']),
    (['--_hidden=4'], ["'_hidden'"]),
    (['--later=4'], ["'later'"]),
    (['--'], ['unknown setting']),
    (['missing.py'], ['missing.py', 'no such config file', '--name=value']),
    (['steps=3'], ['steps=3', 'no such config file', '--name=value']),
    ([''], ['no such config file']),
])
def test_a_mistake_on_the_command_line_ends_in_a_line_that_names_it(configure, argv, says):
    line = mistake(configure, *argv)
    assert all(word in line for word in says), line


@pytest.mark.parametrize('content, says', [
    ('stepz = 3\n', ['bad.py', "'stepz'", 'steps']),  # nanoGPT ignored a typo in a config file in silence
    ('steps = "3"\n', ['bad.py', 'whole number', "'3'"]),
    ('steps = None\n', ['bad.py', 'whole number', 'None']),
    ('rate = 1\n\nsteps = 1 +\n', ['bad.py', 'line 3', 'SyntaxError']),
    ('rate = 1\nsteps = nothing\n', ['bad.py', 'line 2', 'NameError', 'nothing']),
    ('rate = 1\n\nsteps = 1 // 0\n', ['bad.py', 'line 3', 'ZeroDivisionError']),
    ('def helper():\n    return 3\nsteps = helper()\n', ['bad.py', "'helper'"]),
])
def test_a_mistake_in_a_config_file_ends_in_a_line_that_names_it(configure, tmp_path, content, says):
    (tmp_path / 'bad.py').write_text(content, encoding='utf-8')
    line = mistake(configure, 'bad.py')
    assert all(word in line for word in says), line


def test_a_setting_of_another_script_is_named_as_such(configure):
    """A training config given to completion.py: the error says whose setting it is."""
    assert 'train.py' in mistake(configure, '--weight_decay=0.1')


def test_help_prints_the_docstring_and_each_setting_with_default_and_comment(configure, capsys):
    for flag in ('--help', '-h'):
        with pytest.raises(SystemExit) as end:
            configure(flag, '--unknown=1')
        assert not end.value.code
        text = capsys.readouterr().out
        assert text.startswith('A script of two lines.')
        for words in (('--steps=10', 'how many'), ('--rate=0.001', 'how fast'), ('--name=plain', 'what it is called')):
            assert any(all(w in line for w in words) for line in text.splitlines()), text
        assert '_hidden' not in text and 'later' not in text


def test_what_the_machine_refuses_ends_in_one_line_and_our_own_mistakes_in_a_traceback(configure, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['script.py'])
    configure()
    sys.excepthook(OSError, OSError(28, 'No space left on device', 'x.bin'), None)
    assert capsys.readouterr().err == "script.py: [Errno 28] No space left on device: 'x.bin'\n"
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == 'script.py: interrupted\n'
    shown = []
    monkeypatch.setattr(sys, '__excepthook__', lambda *args: shown.append(args))
    error = AssertionError('our mistake')
    sys.excepthook(AssertionError, error, None)
    assert shown == [(AssertionError, error, None)]


def test_a_constant_in_capitals_is_no_setting(tmp_path):
    """completion.py once offered --HERE, the project's folder, which it had imported from configurator."""
    path = tmp_path / 'script.py'
    path.write_text("HERE = 'x'\nsize = 1  # a size\n", encoding='utf-8')
    assert configurator.configure({'__file__': str(path), 'HERE': 'x', 'size': 1}, ['--size=2']) == {'size': 2}
