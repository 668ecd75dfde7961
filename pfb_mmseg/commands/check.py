"""Load the data of a config as training does, and say what is wrong: missing or unreadable files,
sizes, label values, nothing to learn from. The exit status is 1 if there is a problem."""

from __future__ import annotations

import argparse
import sys

from .arguments import ToolParser, add_config, whole


def add_arguments(parser: ToolParser) -> None:
    add_config(parser)
    parser.add_argument(
        '--read',
        type=whole(0),
        default=200,
        metavar='N',
        help='samples to load of each data set, evenly spread; 0: all (default: 200)',
    )


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from ..data.check import check_config
    from .launch import named_config

    config = named_config(parser, args, needs='train_dataloader')
    good, bad, advice = check_config(config, args.read or None)
    for kind, sentences in (('ok', good), ('problem', bad), ('note', advice)):
        for sentence in sentences:
            print(f'{kind:8} {sentence}')
    sys.exit(1 if bad else 0)
