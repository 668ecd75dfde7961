"""Train a small model on all images and with PFB, and see who wins in the same time.

A small network learns to segment 2,000 scenes made by code, three times: from all images, with PFB
for as many iterations, and with PFB for as much time. With PFB an early exit teaches the first
layers on all images, and only the half of each batch that it gets most wrong goes on through the
other layers. This takes about three minutes on an idle machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import ToolParser, seed_number, whole


def add_arguments(parser: ToolParser) -> None:
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for logs and plots')
    parser.add_argument('--seed', type=seed_number, default=0, help='of all runs')
    about = 'of the first two runs (default: %(default)s)'
    parser.add_argument('--iters', type=whole(1), default=200, help=about)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from ..compare.comparison import plot, summarise
    from ..compare.runs import run_folder
    from ..demo import demo
    from ..report.report import write_report

    work_dir = Path(args.work_dir)
    console = Console(markup=False, highlight=False)
    console.print(' '.join(__doc__.split()))
    with Progress(console=console) as progress:
        outcomes = demo.train_all(work_dir, args.seed, progress, args.iters)
    plot(summarise(outcomes, outcomes[0].row), work_dir / 'demo.png', 'cpu')
    run = run_folder(work_dir, outcomes[1].row, args.seed)
    report = write_report(run, work_dir / 'report')
    console.print(demo.kind_table(run))
    console.print(demo.comparison(outcomes))
    console.print(demo.conclusion(outcomes))
    console.print(f'\nAccuracy against time: {work_dir / "demo.png"}', soft_wrap=True)
    console.print(f'What was skipped, to open in a browser: {report}', soft_wrap=True)
    console.print(f'Logs and checkpoints: {work_dir}/', soft_wrap=True)
