"""Train a config and show how well its exit ranks images: as the whole network's loss does?

The rank correlation (Spearman) of both is taken within batches all over the run, for the exit as it
stands and with its features pooled. Train on all images with --prune-ratio 0, or with PFB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pfb_mmseg.commands.arguments import ToolParser, add_config, add_config_options, seed_number


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    parser.add_argument('--prune-ratio', type=float, default=0.0, metavar='P')
    parser.add_argument('--exit', choices=['auxiliary', 'own'], help='default: as the model has it')
    parser.add_argument('--pools', nargs='+', type=int, default=[1, 2, 4], metavar='SIDE')
    parser.add_argument('--interval', type=int, default=5, help='iterations between two batches')
    parser.add_argument('--seed', type=seed_number, default=0)
    parser.add_argument('--work-dir', default='work_dirs/agreement')
    add_config_options(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from rich.console import Console

    from benchmarks import agreement
    from pfb_mmseg import apply_pfb
    from pfb_mmseg.commands.launch import named_config

    cfg = named_config(parser, args)
    work_dir = Path(args.work_dir) / Path(cfg.filename).stem
    try:
        apply_pfb(cfg, args.prune_ratio)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    table = agreement.measure(cfg, work_dir, args.exit, args.pools, args.interval, args.seed)
    Console().print(table)
