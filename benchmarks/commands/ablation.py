"""Repeat the paper's ablations: train a config with PFB, one setting of it varied at a time.

Blocking location, upper bound b of the random term, number of centroids N_C, dimensions D, kernel
weights, bandwidth and batch size (Fig. 3, Tables S1 and S2). Each run is one of `pfb train`; those
that are finished are kept: after an interruption, start it again. The differences are paired by
seed: to the config's own setting, and for a batch size to all images in batches of that size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pfb_mmseg.commands.arguments import (
    ToolParser,
    add_config,
    add_config_options,
    add_reuse_option,
    check_counts,
    seed_number,
)

CONFIG = 'resnet18-small_pfb-p50_1xb128-15e_cifar10tenth-jpeg'


def add_arguments(parser: ToolParser) -> None:
    from benchmarks.ablation import ABLATIONS

    add_config(parser, 'with PFB', default=CONFIG)
    parser.add_argument(
        '--vary',
        nargs='+',
        choices=ABLATIONS,
        default=list(ABLATIONS),
        metavar='SETTING',
        help=f'of {", ".join(ABLATIONS)}; all by default',
    )
    parser.add_argument('--ratio', type=float, default=0.5, metavar='P', help='share left out')
    parser.add_argument('--seeds', nargs='+', type=seed_number, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    add_reuse_option(parser)
    add_config_options(parser)
    parser.add_argument('--work-dir', default='work_dirs/ablation')


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    check_counts(parser, args, 'jobs')
    if not 0 < args.ratio < 1:
        parser.error(f'--ratio {args.ratio:g}: expected a number in (0, 1)')
    from pfb_mmseg.measure import ablation, compare
    from rich.console import Console
    from rich.markdown import Markdown

    from pfb_mmseg.commands.launch import named_config
    from pfb_mmseg.compare.runs import progress_bar

    config = named_config(parser, args)
    root = Path(args.work_dir) / Path(config.filename).stem
    try:
        plan = ablation.plan(config, args.vary, args.ratio)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    console = Console()
    with progress_bar(console) as progress:
        outcomes = compare.run_all(
            plan.rows, args.seeds, root, progress, args.jobs, reuse=args.reuse
        )
    console.print(Markdown(ablation.write(plan, outcomes, root, compare.made_by())))
    console.print(f'ablation.md and ablation.json: {root}/')
