"""What a command shows first is its own, and what is not known is shown."""

import os
import subprocess
import sys
import warnings

import pytest
from demo_runs import ROOT, demo_config

from pfb_mmseg.quiet import PRINTED, WARNED, ignore_known_warnings, known_lines_held_back

MINE = """
import warnings
print('Could not import OneDL, says my code')
warnings.warn('The draw is False, warns my code')
warnings.warn('Fail to import my data', UserWarning)
"""


def show(code, folder, *arguments):
    """All that a process puts on the screen."""
    path = os.pathsep.join(map(str, (folder, ROOT)))
    run = subprocess.run(
        [sys.executable, '-c', code, *arguments],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_a_command_holds_back_the_known_lines_and_no_other(tmp_path):
    (tmp_path / 'mine.py').write_text(MINE)
    cfg = demo_config(tmp_path / 'run', max_iters=1)
    cfg.custom_imports = dict(imports=['pfb_mmseg', 'mine'])
    cfg.dump(tmp_path / 'small.py')
    screen = show('from pfb_mmseg.commands.main import main; main()', tmp_path, 'train', 'small.py')
    lines = screen.splitlines()
    assert not {*lines} & {*PRINTED}
    for _, module in WARNED:
        assert f'{module.replace(".", os.sep)}.py' not in screen
    assert 'Could not import OneDL, says my code' in lines
    assert 'UserWarning: The draw is False, warns my code' in screen
    assert 'UserWarning: Fail to import my data' in screen
    # A warning of MMSegmentation's that has to do with the config.
    assert 'avg_non_ignore' in screen


def test_the_help_of_a_command_that_names_all_methods_begins_with_its_own_words(tmp_path):
    run = 'from pfb_mmseg.commands.main import main; main()'
    screen = show(run, tmp_path, 'compare', '--help')
    assert screen.startswith('usage: ')
    assert not {*screen.splitlines()} & {*PRINTED}


def test_importing_the_package_holds_back_no_line_of_others_and_leaves_the_warnings_as_they_are(
    tmp_path,
):
    code = 'import warnings; before = [*warnings.filters]; import pfb_mmseg;'
    code += 'print([one for one in warnings.filters if "draw" in str(one)])'
    assert show(code, tmp_path).splitlines() == ['[]']


def test_lines_are_held_back_whole_and_the_rest_is_shown_though_an_import_fails(capsys):
    with pytest.raises(ImportError), known_lines_held_back():
        print(PRINTED[0])
        print('kept', PRINTED[0])
        print('one', end='')
        print(' line')
        print('the last words', end='')
        raise ImportError
    assert capsys.readouterr().out == f'kept {PRINTED[0]}\none line\nthe last words'


def test_known_warnings_are_known_by_their_text_and_their_module():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        ignore_known_warnings()
        for message, module in WARNED:
            warnings.warn_explicit(f'{message} ...', UserWarning, 'file', 1, module=module)
            warnings.warn_explicit(f'{message} ...', UserWarning, 'file', 1, module='mine')
            warnings.warn_explicit(f'{message} ...', UserWarning, 'file', 1, module=f'{module}s')
            warnings.warn_explicit('another', UserWarning, 'file', 1, module=module)
            warnings.warn_explicit(message, FutureWarning, 'file', 1, module=module)
    assert len(shown) == 4 * len(WARNED)
