"""The demo: full data, PFB, and full data for as long as PFB took, set side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..compare.methods import apply_method, full_iters, set_iters
from ..compare.runs import Run, train
from ..report import RECORD_NAME, SelectionRecord
from ..shipped import find_config
from .scenes import KIND_SHARES, PFBDemoDataset

CONFIG = 'fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64'
PRUNE_RATIO = 0.5
# Rows of the table, in the order in which they are trained, with their methods.
ROWS = {'Full data': 'full', 'PFB, rare': 'pfb', 'PFB, hard': 'hard', 'Full data, short': 'short'}
TIME_SAVED = (
    'Wall clock, loading included and without validation. Saved: against full iterations of the '
    'same run, as in its log and its report.'
)


def train_all(
    work_dir: Path, seed: int, progress: Progress, iters: int | None = None, reuse: str = 'same'
) -> dict[str, Run]:
    """What each row of the table logged, by its name.

    Args:
        work_dir: folder of the runs and their configs.
        seed: of all runs.
        progress: shows the runs.
        iters: shorter or longer runs than the config has.
        reuse: see :func:`train`.
    """
    runs: dict[str, Run] = {}
    for name, method in ROWS.items():
        config = Config.fromfile(find_config(CONFIG))
        if iters is not None:
            set_iters(config, iters)
        apply_method(config, method, PRUNE_RATIO)
        if method == 'short':
            share = runs['PFB, hard'].budget['seconds'] / runs['Full data'].budget['seconds']
            set_iters(config, max(1, round(min(share, 1) * full_iters(config))))
        config.randomness = dict(seed=seed)
        config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type='BudgetHook')]
        path = work_dir / 'configs' / f'{method}_seed{seed}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        config.dump(path)
        run_dir = work_dir / f'{method}_seed{seed}'
        runs[name] = train(path, run_dir, {}, progress, name, reuse=reuse)
    return runs


def kept_by_kind(runs: dict[str, Run]) -> dict[str, dict[str, tuple[int, int]]]:
    """Of the runs that pruned, by name, see :func:`rates_by_kind`."""
    return {
        name: rates_by_kind(SelectionRecord.load(run.work_dir / RECORD_NAME))
        for name, run in runs.items()
        if name.startswith('PFB')
    }


def comparison(runs: dict[str, Run]) -> Table:
    """Times are wall clock; the time saved is the one that the run's own log and report tell."""
    table = Table(title='Full data and PFB, same model and data', caption=TIME_SAVED)
    table.add_column('')
    for heading in (
        'mIoU [%]',
        'images through\nthe deep part',
        'median step\n[ms]',
        'wall clock\n[s]',
        'wall clock\nsaved',
    ):
        table.add_column(escape(heading), justify='right')
    for name, run in runs.items():
        budget = run.budget
        saved = run.column('pfb/time_saved')
        saved = saved[~np.isnan(saved)]
        table.add_row(
            name,
            f'{run.score:.2f}',
            f'{budget["deep"]:,} of {budget["loaded"]:,}',
            f'{np.median(run.step_time) * 1000:.0f}',
            f'{budget["seconds"]:.1f}',
            f'{saved[-1]:.1%}' if len(saved) else '-',
        )
    return table


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


def kind_table(kinds: dict[str, dict[str, tuple[int, int]]]) -> Table:
    """A line for each kind of scene, a column for each run's kept rate."""
    table = Table(title='Share of the candidates that was kept')
    table.add_column('kind of scene')
    for heading in ('share of the data', *kinds):
        table.add_column(heading, justify='right')
    for kind, share in KIND_SHARES.items():
        rates = [_rate(*counts[kind]) for counts in kinds.values()]
        cells = ['-' if rate is None else f'{rate:.0%}' for rate in rates]
        table.add_row(kind, f'{share:.0%}', *cells)
    return table


def plot(runs: dict[str, Run], kinds: dict[str, dict[str, tuple[int, int]]], path: Path) -> None:
    """Loss, time saved and kept rates of the runs, as PNG."""
    figure = Figure(figsize=(13, 3.6), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    for name, run in runs.items():
        left.plot(run.steps, run.column('decode.loss_ce'), label=name)
    left.set(title='Training loss (on what was trained on)', xlabel='iteration', ylabel='loss')
    left.legend()
    for name in kinds:
        middle.plot(runs[name].steps, runs[name].column('pfb/time_saved'), label=name)
    middle.set(title='Wall clock saved so far', xlabel='iteration', ylim=(-0.05, 1.05))
    middle.legend()
    width = 0.8 / len(kinds)
    for index, (name, counts) in enumerate(kinds.items()):
        rates = [_rate(*counts[kind]) or 0 for kind in KIND_SHARES]
        right.bar(np.arange(len(rates)) + index * width, rates, width, label=name)
    names = [f'{kind}\n{share:.0%}' for kind, share in KIND_SHARES.items()]
    right.set_xticks(np.arange(len(names)) + (len(kinds) - 1) * width / 2, names, fontsize=8)
    right.set(title='Kept rate by kind of scene (share of the data)', ylim=(0, 1))
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _rate(candidates: int, kept: int) -> float | None:
    return kept / candidates if candidates else None
