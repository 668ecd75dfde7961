"""Train a small model on all images, with PFB, and on all images for as long as PFB took.

All is set side by side: what one gets for the whole time, and what for the time that PFB takes. The
scenes are made by code; a few minutes on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import ToolParser, add_reuse_option, seed_number

ABOUT = (
    'A small network learns to segment 2,000 scenes made by code, in six kinds of very unequal '
    'frequency: from all images of each batch; from the half of each that is rarest, or that '
    'an early exit of the network gets most wrong; and from all images, with the schedule '
    'shortened to the time that the latter took.'
)


def add_arguments(parser: ToolParser) -> None:
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for logs and plots')
    parser.add_argument('--seed', type=seed_number, default=0, help='of all runs')
    parser.add_argument('--iters', type=int, help='shorter or longer runs than the configs have')
    add_reuse_option(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if args.iters is not None and args.iters < 1:
        parser.error(f'--iters {args.iters}: expected an integer >= 1')
    from rich.console import Console

    from ..compare.runs import progress_bar
    from ..demo import demo
    from ..report.report import write_report
    from .progress import shown

    work_dir = Path(args.work_dir)
    console = Console()
    console.print(ABOUT)
    with progress_bar(console) as progress:
        runs = demo.train_all(work_dir, args.seed, progress, args.iters, args.reuse)
    kinds = demo.kept_by_kind(runs)
    console.print(demo.comparison(runs))
    console.print(demo.kind_table(kinds))
    demo.plot(runs, kinds, work_dir / 'demo.png')
    with shown() as tell:
        report = write_report(runs['PFB, hard'].work_dir, work_dir / 'report', tell=tell)
    console.print(f'Plots: {work_dir / "demo.png"}   logs and checkpoints: {work_dir}/')
    console.print(f'What was skipped, to open in a browser: {report}')
