"""Train a small model on all images and with PFB, and see who wins in the same time.

The scenes are made by code; about three minutes on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import ToolParser, add_reuse_option, seed_number

ABOUT = (
    'A small network learns to segment 2,000 scenes made by code, in six kinds of very unequal '
    'frequency: from all images; with PFB, where an early exit teaches the first layers on all '
    'images, and only the half of each batch that it gets most wrong goes on through the rest; and '
    'with PFB for as long as all images took.'
)


def add_arguments(parser: ToolParser) -> None:
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for logs and plots')
    parser.add_argument('--seed', type=seed_number, default=0, help='of all runs')
    parser.add_argument('--iters', type=int, help='shorter or longer runs (default: 200)')
    add_reuse_option(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if args.iters is not None and args.iters < 1:
        parser.error(f'--iters {args.iters}: expected an integer >= 1')
    from rich.console import Console

    from ..compare.runs import progress_bar
    from ..demo import demo
    from ..report.report import write_report

    work_dir = Path(args.work_dir)
    console = Console()
    console.print(ABOUT)
    with progress_bar(console) as progress:
        trained = demo.train_all(work_dir, args.seed, progress, args.iters, args.reuse)
    outcomes = [one.outcome for one in trained]
    kinds = demo.rates_by_kind(demo.record_of(trained))
    console.print(demo.kind_table(kinds))
    console.print(demo.comparison(outcomes))
    console.print(demo.conclusion(outcomes), highlight=False)
    demo.plot(trained, kinds, work_dir / 'demo.png')
    report = write_report(trained[1].run.work_dir, work_dir / 'report')
    console.print(f'Plots: {work_dir / "demo.png"}   logs and checkpoints: {work_dir}/')
    console.print(f'What was skipped, to open in a browser: {report}')
