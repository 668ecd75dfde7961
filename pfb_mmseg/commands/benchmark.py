"""Measure time and memory of training steps on this machine: full ones, blocked ones as in the
paper (two_pass), and blocked ones in which the early exit teaches the shallow part on all images
(taught, with the strategy that PFB takes for this network).

The images are random; steps of all kinds take turns. On a GPU time is the wall clock and memory the
peak; elsewhere they are CPU seconds of one thread and what the forward pass keeps for the backward
pass. Criterion ('hard' where it names none), mixed precision, activation_checkpointing and
torch.compile (--cfg-options compile=True) are those of the config.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .arguments import ToolParser, add_config, share, whole


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    parser.add_argument('--ratios', type=share, nargs='+', default=[0.3, 0.5, 0.7], metavar='P')
    parser.add_argument('--steps', type=whole(1), default=20, help='measured steps of each kind')
    about = "images per step (default: the config's)"
    parser.add_argument('--batch-size', type=whole(1), help=about)
    parser.add_argument(
        '--crop',
        type=whole(1),
        nargs=2,
        metavar=('H', 'W'),
        help="size of the images (default: the config's crop size)",
    )
    parser.add_argument('--amp', action='store_true', help='with automatic mixed precision')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is one')
    parser.add_argument('--out', metavar='FILE', help='write everything to this JSON file')


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from dataclasses import asdict

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from ..compare import benchmark
    from ..report.versions import this_code
    from .launch import named_config, turn_on_amp

    config = named_config(parser, args)
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        if args.amp:
            turn_on_amp(config)
        bench = benchmark.Bench(config, args.ratios, device, args.batch_size, args.crop)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    console = Console(markup=False, highlight=False)
    setting = {
        'config': config.filename,
        'criterion': config.model.pfb.criterion['type'],
        'batch size': bench.batch_size,
        'device': torch.cuda.get_device_name() if device == 'cuda' else 'CPU, one thread',
        'versions': f'{this_code()["version"]}, torch {torch.__version__}',
    }
    for name, value in setting.items():
        console.print(f'{name}: {value}', soft_wrap=True)
    with Progress(console=console) as progress:
        results = benchmark.measure(bench, args.steps, progress)
    console.print(benchmark.table(results))
    if args.out:
        found = {'setting': setting, 'results': [asdict(result) for result in results]}
        Path(args.out).write_text(json.dumps(found, indent=1) + '\n')
