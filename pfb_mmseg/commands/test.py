"""Test a checkpoint, as MMSegmentation's tool does."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import ToolParser, add_config, add_launch_arguments


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--out', help='folder for the predicted label maps')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for images with the predictions painted in')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for which --show shows an image'
    )
    parser.add_argument('--tta', action='store_true', help='augment at test time: scales and flips')
    add_launch_arguments(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        parser.error(f'checkpoint {args.checkpoint!r} is not a file')
    from mmengine.runner import Runner

    from . import launch

    cfg = launch.load_config(parser, args)
    cfg.load_from = args.checkpoint
    try:
        if args.show or args.show_dir:
            launch.turn_on_drawing(cfg, args)
        if args.tta:
            launch.turn_on_tta(cfg)
    except ValueError as error:
        parser.error(str(error))
    if args.out:
        evaluators = cfg.test_evaluator
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            evaluator['output_dir'] = args.out

    with launch.cpu_launch(cfg), launch.explain_refused_checkpoint():
        Runner.from_cfg(cfg).test()
