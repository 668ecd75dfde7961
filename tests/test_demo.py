"""What `make demo` tells in the end, and the whole of it in runs of a few iterations."""

import sys

import pytest
from rich.console import Console
from test_compare import outcome

from pfb_mmseg.commands.main import main
from pfb_mmseg.demo import demo


def three(pfb=30.0, long=40.5, scores=(54.4, 53.1, 60.7)):
    """What the three rows come to, with these CPU seconds beside 40 of full data."""
    rows = zip(('full', 'hard-p50', 'long-hard-p50'), scores, (40.0, pfb, long), strict=True)
    return [outcome(row, 0, score, cpu_seconds=seconds) for row, score, seconds in rows]


def test_a_newcomer_sees_the_same_time_on_both_sides_and_who_wins():
    console = Console(width=80, record=True)
    console.print(demo.comparison(three()))
    lines = [
        line for line in console.export_text().splitlines() if line.strip().startswith(demo.ROWS)
    ]
    assert [line.split()[-2:] for line in lines] == [
        ['40.0', '54.4'],
        ['30.0', '53.1'],
        ['40.5', '60.7'],
    ]
    assert demo.conclusion(three()).splitlines() == [
        'Same iterations: PFB takes 25% less time and ends 1.3 mIoU behind.',
        'Same time: PFB wins by 6.3 mIoU.',
    ]
    lost = demo.conclusion(three(scores=(54.4, 53.1, 50.0)))
    assert lost.endswith('Same time: all images win by 4.4 mIoU.')


@pytest.mark.parametrize('times', [dict(pfb=41.0), dict(long=50.0), dict(long=30.0)])
def test_times_that_cannot_be_compared_are_no_result(times):
    assert demo.conclusion(three(**times)).startswith('The machine was busy')


@pytest.mark.slow
def test_the_demo_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['demo.py', '--iters', '4', '--work-dir', 'out'])
    main('demo')
    told = capsys.readouterr().out
    assert 'Same time:' in told or 'The machine was busy' in told
    assert (tmp_path / 'out/demo.png').read_bytes().startswith(b'\x89PNG')
    assert (tmp_path / 'out/report/index.html').is_file()
