"""The demo: full data, PFB for as many iterations, and PFB for full data's time, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.box import SIMPLE
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..compare.compare import run_all, run_folder
from ..compare.comparison import Outcome
from ..compare.rows import plan
from ..compare.runs import Run
from ..report import RECORD_NAME, SelectionRecord
from ..shipped import find_config
from .scenes import KIND_SHARES, PFBDemoDataset

CONFIG = 'fcn_r18-d8_1xb16-300i_demo-64x64'
ITERS, PRUNE_RATIO = 200, 0.5
# Names of the rows, in their order.
FULL, PFB, PFB_LONG = 'all images', 'PFB, p = 0.5', "PFB, in full data's time"
# Times that differ by more are not equal, whatever was aimed at.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Trained:
    """A row of the table.

    Attributes:
        name: of the row.
        outcome: accuracy, and what it cost.
        run: what it logged.
    """

    name: str
    outcome: Outcome
    run: Run


def train_all(
    work_dir: Path, seed: int, progress: Progress, iters: int | None = None, reuse: str = 'same'
) -> list[Trained]:
    """The rows of the table, made as ``pfb compare`` makes its own.

    Args:
        work_dir: folder of the runs and their configs.
        seed: of all runs.
        progress: shows the runs.
        iters: of the first two; None: :data:`ITERS`.
        reuse: see :func:`.runs.train`.
    """
    config = Config.fromfile(find_config(CONFIG))
    rows = plan(
        config,
        methods=['full', 'hard'],
        ratios=[PRUNE_RATIO],
        long=['hard'],
        iters=ITERS if iters is None else iters,
        time='cpu',
    )
    outcomes = run_all(rows, [seed], work_dir, progress, reuse=reuse, time='cpu')
    return [
        Trained(name, outcome, Run(run_folder(work_dir, outcome.row, seed)))
        for name, outcome in zip((FULL, PFB, PFB_LONG), outcomes, strict=True)
    ]


def comparison(outcomes: Sequence[Outcome]) -> Table:
    """A line for each row; time is CPU seconds, which other programs hardly change."""
    table = Table(
        title='Same model, same data',
        box=SIMPLE,
        caption='CPU time: of training, in one thread, validation left out',
    )
    table.add_column('')
    for heading in ('iterations', 'images through\nall layers', 'CPU time\n[s]', 'mIoU\n[%]'):
        table.add_column(escape(heading), justify='right')
    for name, outcome in zip((FULL, PFB, PFB_LONG), outcomes, strict=True):
        table.add_row(
            name,
            f'{outcome.iterations}',
            f'{outcome.deep:,}',
            f'{outcome.cpu_seconds:.1f}',
            f'{outcome.score:.1f}',
        )
    return table


def conclusion(outcomes: Sequence[Outcome]) -> str:
    """Who wins, in two sentences; or that the times cannot be right."""
    full, pfb, long = outcomes
    busy = 'The machine was busy: the times that were measured cannot be compared, run it again.'
    saved = 1 - pfb.cpu_seconds / full.cpu_seconds
    apart = abs(long.cpu_seconds / full.cpu_seconds - 1)
    if saved <= 0 or apart > _TOLERANCE:
        return busy
    gained = long.score - full.score
    return (
        f'In as many iterations PFB saves {saved:.0%} of the time and comes to '
        f'{pfb.score - full.score:+.1f} mIoU.\nIn the same time '
        f'{"PFB wins" if gained > 0 else "all images win"} by {abs(gained):.1f} mIoU.'
    )


def rates_by_kind(record: SelectionRecord) -> dict[str, tuple[int, int]]:
    """For each kind of scene, commonest first: how often a candidate, how often kept."""
    kind_of = np.array([PFBDemoDataset.kind_of(path) for path in record.paths])
    return {
        kind: (
            int(record.candidates[kind_of == kind].sum()),
            int(record.kept[kind_of == kind].sum()),
        )
        for kind in KIND_SHARES
    }


def kind_table(kinds: dict[str, tuple[int, int]]) -> Table:
    """A line for each kind of scene, see :func:`rates_by_kind`."""
    table = Table(title='What PFB trained all layers on', box=SIMPLE)
    table.add_column('kind of scene')
    for heading in ('share of the data', 'of these kept'):
        table.add_column(heading, justify='right')
    for kind, share in KIND_SHARES.items():
        rate = _rate(*kinds[kind])
        table.add_row(kind, f'{share:.0%}', '-' if rate is None else f'{rate:.0%}')
    return table


def plot(trained: Sequence[Trained], kinds: dict[str, tuple[int, int]], path: Path) -> None:
    """Accuracy against time, loss and kept rates, as PNG."""
    figure = Figure(figsize=(13, 3.6), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    for one in trained:
        left.plot(one.outcome.cpu_seconds, one.outcome.score, 'o', markersize=10, label=one.name)
        middle.plot(one.run.steps, one.run.column('decode.loss_ce'), label=one.name)
    left.set(title='Accuracy', xlabel='CPU time of training [s]', ylabel='mIoU [%]', xlim=(0, None))
    left.margins(0.2)
    left.legend()
    middle.set(title='Loss of what was trained on', xlabel='iteration', ylabel='loss')
    names = [f'{kind}\n{share:.0%}' for kind, share in KIND_SHARES.items()]
    right.bar(names, [_rate(*kinds[kind]) or 0 for kind in KIND_SHARES])
    right.tick_params(axis='x', labelsize=8)
    right.set(title='Kept by PFB, by kind of scene (share of the data)', ylim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def record_of(trained: Sequence[Trained]) -> SelectionRecord:
    """What PFB kept in as many iterations as full data had."""
    return SelectionRecord.load(trained[1].run.work_dir / RECORD_NAME)


def _rate(candidates: int, kept: int) -> float | None:
    return kept / candidates if candidates else None
