"""Trains the demo model on all images, with PFB, and on all images for as long as PFB took.

All is set side by side: what one gets for the whole time, and what for the time that PFB takes.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import numpy as np
from matplotlib import pyplot as plt
from mmengine.config import Config
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from _cli import ToolParser, seed_number
from _runs import ROOT, Run, add_reuse_option, progress_bar, train
from pfb_mmseg.baselines.methods import apply_method, full_iters, set_iters
from pfb_mmseg.datasets.demo import KIND_SHARES, PFBDemoDataset
from pfb_mmseg.reporting import RECORD_NAME, SelectionRecord
from pfb_mmseg.reporting.report import write_report

CONFIG = 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py'
PRUNE_RATIO = 0.5
# Rows of the table, in the order in which they are trained, with their methods.
ROWS = {'Full data': 'full', 'PFB, rare': 'pfb', 'PFB, hard': 'hard', 'Full data, short': 'short'}
TIME_SAVED = (
    'Wall clock, loading included and without validation. Saved: against full iterations of the '
    'same run, as in its log and its report.'
)


def main() -> None:
    parser = ToolParser(description='Train the demo model with and without PFB.')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for logs and plots')
    parser.add_argument('--seed', type=seed_number, default=0, help='of all runs')
    parser.add_argument('--iters', type=int, help='shorter or longer runs than the configs have')
    add_reuse_option(parser)
    args = parser.parse_args()
    if args.iters is not None and args.iters < 1:
        parser.error(f'--iters {args.iters}: expected an integer >= 1')
    work_dir = Path(args.work_dir)
    console = Console()
    console.print(
        'A small network learns to segment 2,000 scenes made by code, in six kinds of very unequal '
        'frequency: from all images of each batch; from the half of each that is rarest, or that '
        'an early exit of the network gets most wrong; and from all images, with the schedule '
        'shortened to the time that the latter took.'
    )
    runs: dict[str, Run] = {}
    with progress_bar(console) as progress:
        for name, method in ROWS.items():
            config = Config.fromfile(ROOT / CONFIG)
            if args.iters is not None:
                set_iters(config, args.iters)
            apply_method(config, method, PRUNE_RATIO)
            if method == 'short':
                share = runs['PFB, hard'].budget['seconds'] / runs['Full data'].budget['seconds']
                set_iters(config, max(1, round(min(share, 1) * full_iters(config))))
            config.randomness = dict(seed=args.seed)
            config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type='BudgetHook')]
            path = work_dir / 'configs' / f'{method}_seed{args.seed}.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            config.dump(path)
            run_dir = work_dir / f'{method}_seed{args.seed}'
            runs[name] = train(path, run_dir, {}, progress, name, reuse=args.reuse)
    blocked = {name: run for name, run in runs.items() if name.startswith('PFB')}
    kinds = {
        name: rates_by_kind(SelectionRecord.load(run.work_dir / RECORD_NAME))
        for name, run in blocked.items()
    }
    console.print(comparison(runs))
    console.print(kind_table(kinds))
    plot(runs, kinds, work_dir / 'demo.png')
    report = write_report(runs['PFB, hard'].work_dir, work_dir / 'report')
    console.print(f'Plots: {work_dir / "demo.png"}   logs and checkpoints: {work_dir}/')
    console.print(f'What was skipped, to open in a browser: {report}')


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
            f'{run.miou:.2f}',
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
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout='constrained')
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


if __name__ == '__main__':
    main()
