"""The evidence command from end to end, on a run too short to mean anything."""

import runpy
import sys
from pathlib import Path

import pytest

EVIDENCE = Path(__file__).parents[1] / 'tools' / 'evidence.py'
SHORT = [
    'train_cfg.max_iters=26',
    'train_dataloader.dataset.length=60',
    'train_dataloader.dataset.size=(32,32)',
    'model.data_preprocessor.size=(32,32)',
]


def run(work_dir):
    """Run the command; returns the table it wrote."""
    arguments = ['--seeds', '0', '--work-dir', str(work_dir), '--cfg-options', *SHORT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [str(EVIDENCE), *arguments])
        runpy.run_path(str(EVIDENCE), run_name='__main__')
    return (work_dir / 'evidence.md').read_text()


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('evidence')
    return work_dir, run(work_dir)


def test_there_is_a_row_for_the_default_and_for_each_option_changed_alone(first):
    head, _, *body = [[c.strip(' `*') for c in line.split('|')] for line in first[1].splitlines()]
    rows = {name: dict(zip(head, row, strict=True)) for row in body for name in [row[1]]}
    assert next(iter(rows)) == 'default'
    assert {
        "update_rule='literal'",
        "bandwidth='identity'",
        'weighted=False',
        'exploration=0',
        "exploration_space='log_density'",
        'num_centroids=16',
        'dim=32',
        'momentum=0.5',
        'revive_after=None',
        "score_statistics='running'",
        'score_scale=0.5',
    } < set(rows)
    agreement = {name: row['as ranked (%)'].split(' ± ')[0] for name, row in rows.items()}
    assert float(agreement['exploration=0']) == 100
    assert float(agreement['default']) < 100
    choice = {
        name: float(row['as default, by rank (%)'].split(' ± ')[0].strip('*'))
        for name, row in rows.items()
    }
    assert choice['default'] == 100
    assert choice["score_statistics='running'"] < 100


def test_a_second_call_replays_the_kept_stream_to_the_same_table(first):
    work_dir, table = first
    stream = work_dir / 'stream_0.npz'
    recorded = stream.stat().st_mtime_ns
    assert run(work_dir) == table
    assert stream.stat().st_mtime_ns == recorded
