"""Train the model of a config, as MMSegmentation's tool does.

With --prune-ratio, PFB is turned on for a config that knows nothing of it.
"""

from __future__ import annotations

import argparse

from .arguments import ToolParser, add_config, add_launch_arguments


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    parser.add_argument(
        '--prune-ratio',
        type=float,
        metavar='P',
        help='train with PFB and prune this share of every batch, in [0, 1)',
    )
    parser.add_argument(
        '--skip-loading',
        type=float,
        metavar='S',
        help='with --prune-ratio, leave out this share of every batch before it is loaded',
    )
    parser.add_argument(
        '--resume', action='store_true', help='go on from the latest checkpoint in the work dir'
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    add_launch_arguments(parser)


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from mmengine.runner import Runner
    from mmseg.registry import RUNNERS

    from .. import apply_pfb
    from . import launch

    cfg = launch.load_config(parser, args)
    try:
        if args.prune_ratio is not None:
            for change in apply_pfb(cfg, args.prune_ratio, args.skip_loading or 0.0):
                launch.say(f'--prune-ratio: {change}')
        elif args.skip_loading is not None:
            parser.error(f'--skip-loading {args.skip_loading:g} needs --prune-ratio')
        if args.amp:
            launch.turn_on_amp(cfg)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    cfg.resume = args.resume or cfg.get('resume', False)

    with launch.cpu_launch(cfg):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        with launch.explain_refused_checkpoint():
            runner.train()
