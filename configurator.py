"""
Settings: a script's plain globals, overridden by python-file configs and --key=value flags.

    batch_size = 64  # sequences per micro-batch
    settings = configure(globals())

    $ python train.py config/train_lyric_char.py --batch_size=32 --compile --out_dir=out-mine

Every global of the script defined above the call (a bool, int, float or str whose name is neither in capitals nor begins
with an underscore) is a setting. Config files are plain Python: they see the settings by name and may compute
(min_lr = learning_rate / 10); helper names of theirs start with an underscore. Flags beat files, whatever the order.
--help lists all settings with their comments. A mistake ends the script with one line.
"""
import ast
import difflib
import os
import sys
import tokenize

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = ('train.py', 'completion.py', 'calculate_ppl.py', 'web_demo.py', 'bench.py', 'data/lyric_char/prepare.py')


def configure(script, argv=None):
    """
    Override the settings in `script` (the caller's globals()) by the command line; `argv` stands in for sys.argv[1:].
    Returns {name: value} of all settings. Raises SystemExit: code 0 after --help, one line on the user's mistake.
    """
    settings = {k: v for k, v in script.items()
                if not k.startswith('_') and not k.isupper() and type(v) in (bool, int, float, str)}  # capitals: constants
    path, argv = script['__file__'], sys.argv[1:] if argv is None else argv
    if '--help' in argv or '-h' in argv:
        print(help_text(path, script.get('__doc__') or '', settings))
        raise SystemExit(0)
    for arg in argv:
        if not arg.startswith('-'):
            run_config_file(arg, settings)
    for arg in argv:
        if arg.startswith('-'):
            key, equals, text = arg.lstrip('-').partition('=')
            where = arg if arg.isprintable() else repr(arg)
            check_known(key, settings, where)
            settings[key] = parse(key, text, settings[key], equals, where)
    script.update(settings)
    sys.excepthook = _one_line_for_the_machine
    return settings


def run_config_file(path, settings):
    """Execute a config file over `settings`, in place. A path not found here is looked up beside the scripts."""
    found = next((p for p in (path, os.path.join(HERE, path)) if os.path.isfile(p)), None)
    if found is None:
        raise SystemExit(f'{path if path.isprintable() else repr(path)}: no such config file. (A setting is written --name=value.)')
    names = dict(settings)
    try:
        with open(found, encoding='utf-8') as f:
            exec(compile(f.read(), found, 'exec'), names)
    except Exception as error:  # the file is the user's program: anything may go wrong in it
        line = getattr(error, 'lineno', None) or _line_of(error, found)
        raise SystemExit(f'{path}, line {line}: {type(error).__name__}: {" ".join(str(error).split())}') from error
    for key, value in names.items():
        if not key.startswith('_') and type(value).__name__ != 'module':
            check_known(key, settings, path)
            settings[key] = check_type(key, value, settings[key], path)


def parse(key, text, default, equals, where):
    """The value of a flag `--key=text`, of the type of `default`; a bare `--key` sets a bool to True."""
    if not equals:
        if type(default) is bool:
            return True
        raise SystemExit(f'{where}: {key} needs a value, as in --{key}={default!r}.')
    if type(default) is str:  # text is taken as it stands: --start=123 and --start=a=b are text
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text.lower() in ('true', 'false') else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    value = value if type(value) in (bool, int, float, str) else text  # a list, a dict
    return check_type(key, value, default, where)


def check_type(key, value, default, where):
    """`value` as the type of `default`: ints widen to float, whole floats (1e4) pass for ints, nothing else changes."""
    if type(value) is int and abs(value) >= 1 << 63:
        raise SystemExit(f'{where[:80]}: {key} must be smaller in size than 2**63.')
    if type(value) is type(default):
        return value
    if type(default) is float and type(value) is int:
        return float(value)
    if type(default) is int and type(value) is float and value.is_integer():
        return int(value)
    kind = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text'}[type(default)]
    raise SystemExit(f'{where}: {key} must be {kind}, not {value!r}.')


def check_known(key, settings, where):
    """End with a line that names the unknown setting and what the user may have meant."""
    if key in settings:
        return
    near = difflib.get_close_matches(key, settings, n=1)
    owners = [s for s in SCRIPTS if os.path.exists(os.path.join(HERE, s)) and key in defined_settings(os.path.join(HERE, s))]
    hint = f' It is a setting of {", ".join(owners)}.' if owners else f' Did you mean {near[0]}?' if near else \
        ' --help lists the settings.'
    raise SystemExit(f'{where}: unknown setting {key!r}.{hint}')


def at_least(lowest, settings, *names):
    """End with a line where one of the settings `names` is below `lowest`."""
    for name in names:
        if settings[name] < lowest:
            raise SystemExit(f'--{name}={settings[name]}: must be {lowest} or more.')


def defined_settings(path):
    """{name: its trailing comment} of the settings of a script, read from its source without running it."""
    with open(path, encoding='utf-8') as f:
        tree = ast.parse(f.read())
    with open(path, 'rb') as f:
        comments = {t.start[0]: t.string.lstrip('# ') for t in tokenize.tokenize(f.readline) if t.type == tokenize.COMMENT}
    found = {}
    for node in tree.body:
        call = getattr(node, 'value', None)
        if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'configure':
            return found
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and not node.targets[0].id.startswith('_'):
            found[node.targets[0].id] = comments.get(node.end_lineno, '')
    return {}


def help_text(path, doc, settings):
    """The script's docstring, then each setting with its default and its comment, in the script's order."""
    comments = defined_settings(path)
    rows = [(f'--{k}={v}', comments.get(k, '')) for k, v in settings.items()]
    width = min(34, max(len(flag) for flag, _ in rows))
    return doc.strip() + '\n\nSettings (default, meaning):\n' + '\n'.join(f'  {flag:{width}}  {note}' for flag, note in rows)


def _one_line_for_the_machine(kind, error, trace):
    """What the machine refuses (disk full, no right to write) and Ctrl-C end in one line; our own mistakes in a traceback."""
    if issubclass(kind, (OSError, KeyboardInterrupt)):
        print(f'{os.path.basename(sys.argv[0])}: {str(error) or "interrupted"}', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _line_of(error, filename):
    """The line of `filename` an exception came from, for the message."""
    line, trace = '?', error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
