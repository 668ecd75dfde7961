"""Measure what PFB saves on this machine: full and blocked training steps, side by side.

Any config of a segmentor will do. The steps run in turns on the same batches, on a GPU or the CPU.
ideal = p (1 - s): p is the share of images that is pruned, s the share of a full step that the
no-grad forward up to the blocking point takes.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import fields
from pathlib import Path

from .arguments import ToolParser, add_config, add_config_options


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    parser.add_argument('--ratios', type=float, nargs='+', default=[0.3, 0.5, 0.7], metavar='P')
    parser.add_argument(
        '--strategies',
        nargs='+',
        choices=['two_pass', 'single_pass'],
        default=['two_pass', 'single_pass'],
    )
    parser.add_argument(
        '--score-scale',
        type=float,
        nargs='+',
        default=[1.0],
        metavar='S',
        help='two_pass: relative sizes of the images in the scoring pass (default: 1)',
    )
    parser.add_argument('--steps', type=int, default=20, help='measured steps of each kind')
    parser.add_argument(
        '--seconds',
        type=float,
        default=math.inf,
        metavar='S',
        help='measure fewer steps than --steps, at least three, where they take longer than this',
    )
    parser.add_argument('--warmup', type=int, default=3, help='steps of each kind before these')
    parser.add_argument('--batch-size', type=int, help="images per step (default: the config's)")
    parser.add_argument(
        '--crop',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="size of synthetic images (default: the config's crop size)",
    )
    parser.add_argument(
        '--real-data', action='store_true', help="batches of the config's train_dataloader"
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='default',
        choices=['default', 'float16', 'bfloat16'],
        help='mixed precision (default: float16 on a GPU, bfloat16 on the CPU)',
    )
    parser.add_argument(
        '--channels-last', action='store_true', help='weights in the memory format channels_last'
    )
    parser.add_argument(
        '--compile',
        nargs='?',
        const='inductor',
        metavar='BACKEND',
        help="torch.compile, as MMEngine's option of that name (default: inductor)",
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is one')
    parser.add_argument('--no-memory', action='store_true', help='leave peak memory out')
    parser.add_argument('--out', metavar='FILE', help='write everything to this JSON file')
    add_config_options(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from rich.console import Console

    from ..compare import steps
    from .launch import named_config

    config = named_config(parser, args)
    asked = steps.Request(**{one.name: getattr(args, one.name) for one in fields(steps.Request)})
    try:
        bench = steps.Bench(steps.prepare(config, asked))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    console = Console()
    report = steps.run(bench, asked, console)
    report.show(console)
    if args.out:
        Path(args.out).write_text(json.dumps(report.to_dict(), indent=1) + '\n')
