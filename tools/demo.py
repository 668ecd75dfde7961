"""Trains the demo model twice, on all images and with PFB, and sets the two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from pfb_mmseg.datasets.demo import KIND_SHARES, PFBDemoDataset
from pfb_mmseg.reporting import RECORD_NAME, SelectionRecord
from pfb_mmseg.reporting.report import write_report

CONFIGS = {
    'Full data': 'configs/demo/fcn_r18-d8_1xb16-300i_demo-64x64.py',
    'PFB': 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py',
}
TIME_SAVED = (
    'Wall clock, loading included and without validation. Saved: against full iterations of the '
    'same run, as in its log and its report.'
)


def main() -> None:
    parser = ToolParser(description='Train the demo model with and without PFB.')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for logs and plots')
    parser.add_argument('--seed', type=seed_number, default=0, help='of both runs')
    parser.add_argument('--iters', type=int, help='shorter or longer runs than the configs have')
    add_reuse_option(parser)
    args = parser.parse_args()
    if args.iters is not None and args.iters < 1:
        parser.error(f'--iters {args.iters}: expected an integer >= 1')
    work_dir = Path(args.work_dir)
    console = Console()
    console.print(
        'A small network learns to segment 2,000 scenes made by code, in six kinds of very unequal '
        'frequency: first from all images of each batch, then from the rarer half of each.'
    )
    options: dict[str, Any] = {'randomness.seed': args.seed}
    if args.iters is not None:
        options |= {'train_cfg.max_iters': args.iters, 'train_cfg.val_interval': args.iters}
    runs = {}
    with progress_bar(console) as progress:
        for name, config in CONFIGS.items():
            run_dir = work_dir / f'{Path(config).stem}_seed{args.seed}'
            measured = Config.fromfile(ROOT / config)
            measured.merge_from_dict(options)
            measured.custom_hooks = [*measured.get('custom_hooks', []), dict(type='BudgetHook')]
            path = work_dir / 'configs' / f'{run_dir.name}.py'
            path.parent.mkdir(parents=True, exist_ok=True)
            measured.dump(path)
            runs[name] = train(path, run_dir, {}, progress, name, reuse=args.reuse)
    record = SelectionRecord.load(runs['PFB'].work_dir / RECORD_NAME)
    kinds = rates_by_kind(record)
    console.print(comparison(runs))
    console.print(kind_table(kinds))
    plot(runs, kinds, work_dir / 'demo.png')
    report = write_report(runs['PFB'].work_dir, work_dir / 'report')
    console.print(f'Plots: {work_dir / "demo.png"}   logs and checkpoints: {work_dir}/')
    console.print(f'What was skipped, to open in a browser: {report}')


def comparison(runs: dict[str, Run]) -> Table:
    """Times are wall clock; the time saved is the one that the run's own log and report tell."""
    table = Table(title='Full data and PFB, same model, data and schedule', caption=TIME_SAVED)
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


def kind_table(kinds: dict[str, tuple[int, int]]) -> Table:
    table = Table(title='What PFB kept while it was pruning')
    table.add_column('kind of scene')
    for heading in ('share of the data', 'candidates', 'kept', 'kept rate'):
        table.add_column(heading, justify='right')
    for kind, (candidates, kept) in kinds.items():
        rate = f'{kept / candidates:.0%}' if candidates else '-'
        table.add_row(kind, f'{KIND_SHARES[kind]:.0%}', f'{candidates:,}', f'{kept:,}', rate)
    return table


def plot(runs: dict[str, Run], kinds: dict[str, tuple[int, int]], path: Path) -> None:
    full, pfb = runs.values()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout='constrained')
    for name, run in runs.items():
        left.plot(run.steps, run.column('decode.loss_ce'), label=name)
    left.set(title='Training loss (on what was trained on)', xlabel='iteration', ylabel='loss')
    left.legend()
    middle.plot(
        pfb.steps, pfb.column('pfb/kept') / pfb.column('pfb/candidates'), label='share kept'
    )
    middle.plot(pfb.steps, pfb.column('pfb/time_saved'), label='wall clock saved so far')
    middle.set(title='Over the run', xlabel='iteration', ylim=(-0.05, 1.05))
    middle.legend()
    names = [f'{kind}\n{KIND_SHARES[kind]:.0%}' for kind in kinds]
    right.bar(names, [kept / max(candidates, 1) for candidates, kept in kinds.values()])
    right.set(title='Kept rate by kind of scene (share of the data)', ylim=(0, 1))
    right.tick_params(axis='x', labelsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
