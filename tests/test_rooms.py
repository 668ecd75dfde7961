"""What the folders of the package may know of each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pfb_mmseg

PACKAGE = Path(pfb_mmseg.__file__).parent
# Each leads to those before it, never to one behind it. What lies in no folder leads nowhere.
ROOMS = (
    *('core', 'blocking', 'models', 'convert', 'data', 'report', 'hooks', 'compare'),
    *('demo', 'commands'),
)
FILES = {path.stem for path in PACKAGE.glob('*.py')}


def imported_rooms(path):
    """Folders and files of the package that a module of a folder imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (name.partition('.')[0] for name in names)


@pytest.mark.parametrize('room', ROOMS)
def test_an_import_only_leads_to_a_more_basic_folder(room):
    allowed = {*ROOMS[: ROOMS.index(room)], *FILES}
    if room == 'commands':
        allowed.add('apply_pfb')  # of the package itself, which refuses where it cannot work
    for path in (PACKAGE / room).glob('*.py'):
        assert {*imported_rooms(path)} <= allowed, path


def test_every_folder_has_its_place_among_the_others():
    assert {path.parent.name for path in PACKAGE.glob('*/__init__.py')} == {*ROOMS}


def test_a_file_that_lies_in_no_folder_imports_none():
    for path in PACKAGE.glob('*.py'):
        if path.name == '__init__.py':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.module in FILES, path


WATCH = """
import builtins, sys
real, found = builtins.__import__, set()

def watch(name, globals=None, *rest, **options):
    who = (globals or {}).get('__name__') or ''
    if who.startswith('pfb_mmseg') and name.partition('.')[0] in ('matplotlib', 'rich'):
        found.add((who, name))
    return real(name, globals, *rest, **options)

builtins.__import__ = watch
import pfb_mmseg
report = ('browse', 'images', 'page', 'report', 'scan', 'scores')
pages = ('pfb_mmseg.commands', *(f'pfb_mmseg.report.{name}' for name in report))
found |= {module for module in sys.modules if module.startswith(pages)}
print('found', found)
"""


def test_what_training_needs_imports_no_plots_no_tables_and_no_pages():
    """MMEngine imports rich by itself; that is not asked about."""
    run = subprocess.run([sys.executable, '-c', WATCH], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == 'found set()'
