"""Measure what methods save where steps wait for the data loader, and where they do not.

The loader reads PNG files of 2048x1024, which are made first and kept, through MMSegmentation's
pipeline for Cityscapes. Behind it the crops are scaled down, for one network, to small images, for
which it waits, and to larger ones, for which it does not. Each run is one of `pfb train`; those
that are finished are kept: after an interruption, start it again.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from pfb_mmseg.commands.arguments import ToolParser, add_reuse_option, seed_number


def add_arguments(parser: ToolParser) -> None:
    from benchmarks.loader import METHODS
    from pfb_mmseg.compare.methods import DESCRIPTIONS

    lines = (f'  {name:<15} {DESCRIPTIONS[name]}' for name in METHODS)
    parser.epilog = 'methods:\n' + '\n'.join(lines)
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=METHODS,
        default=['pfb', 'hard', 'two_stage', 'orderdp'],
        metavar='METHOD',
        help='beside full (default: %(default)s)',
    )
    parser.add_argument(
        '--ratios',
        nargs='+',
        type=float,
        default=[0.5, 0.7],
        metavar='P',
        help='shares that each of the pruning methods leaves out (default: %(default)s)',
    )
    parser.add_argument('--seeds', nargs='+', type=seed_number, default=[0])
    parser.add_argument(
        '--heights',
        nargs='+',
        type=int,
        default=[32, 160],
        metavar='H',
        help='of the images that the network gets, twice as wide; a table each (default: '
        '%(default)s)',
    )
    for name, default, about in (
        ('images', 24, 'files'),
        ('iters', 50, 'iterations of full data'),
        ('batch-size', 4, 'images of a step'),
        ('workers', 1, 'processes of the loader; 0: the training process loads'),
    ):
        parser.add_argument(
            f'--{name}', type=int, default=default, help=f'{about} (default: %(default)s)'
        )
    add_reuse_option(parser)
    parser.add_argument('--work-dir', default='work_dirs/loader')


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from benchmarks import loader
    from pfb_mmseg.compare.compare import made_by
    from pfb_mmseg.compare.runs import progress_bar

    root = Path(args.work_dir)
    console = Console()
    try:
        names = [one.name for one in fields(loader.Request)]
        request = loader.Request(**{name: getattr(args, name) for name in names})
        with progress_bar(console) as progress:
            loader.write_images(root / 'cityscapes', request.images, progress)
            benches = loader.plan(request, root / 'cityscapes')
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    with progress_bar(console) as progress:
        lines = {
            height: loader.measure(bench, request, root / f'height{height}', progress, args.reuse)
            for height, bench in benches.items()
        }
    console.print(Markdown(loader.write(lines, request, root, made_by())))
    console.print(f'loader.md and loader.json: {root}/')
