"""The page on the method runs as it stands, and its table names lines and tests that exist."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

import pfb_mmseg.core

PAGE = Path(pfb_mmseg.core.__file__).parent / 'README.md'
TESTS = Path(__file__).parent


def rows():
    table = PAGE.read_text().split('| paper | code |')[1].split('\n\n')[0]
    return [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()[2:]
    ]


def named(cell):
    """(file, name) pairs of a cell such as ``a.py``: ``one``, ``two``; ``b.py``: ``three``."""
    file = None
    for token in re.findall(r'`([^`]+)`', cell):
        if token.endswith('.py'):
            file = token
        else:
            yield file, token


def test_the_code_runs():
    names = {}
    for block in re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), flags=re.M | re.S):
        exec(compile(block, str(PAGE), 'exec'), names)
    assert names['selection'].num_kept == 8 and len(names['features']) == 8


@pytest.mark.parametrize('row', rows(), ids=lambda row: row[0])
def test_what_holds_an_equation_exists(row):
    _, code, tests = row
    for file, name in named(code):
        path = (PAGE.parent / file).resolve()
        module = '.'.join(path.relative_to(PAGE.parents[2]).with_suffix('').parts)
        reduce(getattr, name.split('.'), importlib.import_module(module))
    for file, name in named(tests):
        # Of several tests that begin alike, the first is named in full.
        assert re.search(rf'def \w*{name.removeprefix("…")}\(', (TESTS / file).read_text()), name
