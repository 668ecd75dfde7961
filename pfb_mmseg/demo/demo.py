"""The demo: full data, PFB for as many iterations, and PFB for full data's time, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from mmengine.config import Config
from rich.box import SIMPLE
from rich.progress import Progress
from rich.table import Table

from ..compare.comparison import Outcome
from ..compare.rows import plan
from ..compare.runs import run_all
from ..report import RECORD_NAME, SelectionRecord
from ..shipped import find_config
from .scenes import KIND_SHARES, PFBDemoDataset

CONFIG = 'fcn_r18-d8_1xb16-300i_demo-64x64'
PRUNE_RATIO = 0.5
# What the rows are called, in their order.
ROWS = ('all images', 'PFB, same iterations', 'PFB, same time')
# Times that differ by more are not equal, whatever was aimed at.
_TOLERANCE = 0.1


def train_all(work_dir: Path, seed: int, progress: Progress, iters: int) -> list[Outcome]:
    """Trains the rows of the table, as ``pfb compare`` does, the first two for ``iters``
    iterations; their methods are :data:`ROWS`."""
    config = Config.fromfile(find_config(CONFIG))
    rows = plan(config, ['full', 'hard', 'long'], [PRUNE_RATIO], iters=iters, time='cpu')
    outcomes = run_all(rows, [seed], work_dir, progress, time='cpu')
    return [replace(one, method=name) for name, one in zip(ROWS, outcomes, strict=True)]


def comparison(outcomes: Sequence[Outcome]) -> Table:
    """A line for each row; time is CPU seconds, which other programs hardly change."""
    caption = 'CPU time: of training, in one thread, validation left out'
    table = Table(title='Same model, same data', box=SIMPLE, caption=caption)
    table.add_column('')
    for heading in ('iterations', 'images through\nall layers', 'CPU time\n[s]', 'mIoU\n[%]'):
        table.add_column(heading, justify='right')
    for name, outcome in zip(ROWS, outcomes, strict=True):
        figures = f'{outcome.cpu_seconds:.1f}', f'{outcome.score:.1f}'
        table.add_row(name, f'{outcome.iterations}', f'{outcome.deep:,}', *figures)
    return table


def conclusion(outcomes: Sequence[Outcome]) -> str:
    """Who wins, in two sentences; or that the times cannot be right."""
    full, pfb, long = outcomes
    saved = 1 - pfb.cpu_seconds / full.cpu_seconds
    if saved <= 0 or abs(long.cpu_seconds / full.cpu_seconds - 1) > _TOLERANCE:
        return 'The machine was busy: the measured times cannot be compared, run it again.'
    gained = pfb.score - full.score
    won = long.score - full.score
    return (
        f'Same iterations: PFB takes {saved:.0%} less time and ends {abs(gained):.1f} mIoU '
        f'{"ahead" if gained > 0 else "behind"}.\n'
        f'Same time: {"PFB wins" if won > 0 else "all images win"} by {abs(won):.1f} mIoU.'
    )


def kind_table(run: Path) -> Table:
    """Which share of each kind of scene PFB kept in a run, commonest kind first."""
    record = SelectionRecord.load(run / RECORD_NAME)
    kind_of = np.array([PFBDemoDataset.kind_of(path) for path in record.paths])
    table = Table(title='What PFB trained all layers on', box=SIMPLE)
    table.add_column('kind of scene')
    for heading in ('share of the data', 'of these kept'):
        table.add_column(heading, justify='right')
    for kind, share in KIND_SHARES.items():
        seen, kept = (one[kind_of == kind].sum() for one in (record.candidates, record.kept))
        table.add_row(kind, f'{share:.0%}', f'{kept / seen:.0%}' if seen else '-')
    return table
