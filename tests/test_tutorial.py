"""The tutorial notebook runs from top to bottom, and shows what it says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pfb_mmseg.commands.main import read

ROOT = Path(__file__).resolve().parents[1]
CELLS = json.loads((ROOT / 'docs/tutorial.ipynb').read_text())['cells']
CODE = [''.join(cell['source']) for cell in CELLS if cell['cell_type'] == 'code']
PROSE = '\n'.join(''.join(cell['source']) for cell in CELLS if cell['cell_type'] == 'markdown')
# Behind the last cell: what a reader would look for.
CHECK = """
assert miou.keys() == {'all images', 'rare', 'strong'} and min(miou.values()) > 10, miou
assert changes[0] == 'model.type: EncoderDecoder -> PFBEncoderDecoder'
rare = kept_by_kind('rare')
assert rare['meadow'] < 0.5 < min(rare['winter'], rare['night'], rare['desert']), rare
assert kept['strong'] != rare
assert (FOLDER / 'rare/pruning_report/index.html').is_file()
assert exported.checkpoint.is_file()
"""


def test_no_output_is_kept_in_the_file():
    assert not [cell for cell in CELLS if cell.get('outputs') or cell.get('execution_count')]


def test_commands_that_it_names_are_understood():
    commands = re.findall(r'`pfb ([^`]+)`', PROSE)
    assert len(commands) >= 4
    for command in commands:
        read(shlex.split(command))  # parsed, not run


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path):
    code = '\n\n'.join([*CODE, CHECK])
    run = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'Agg'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert [path.name for path in tmp_path.iterdir()] == ['work_dirs']
