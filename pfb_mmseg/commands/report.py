"""Write a page that shows which images a run with PFB skipped.

The run may be finished, interrupted or still going. Call it where the training was called.
"""

from __future__ import annotations

import argparse

from .arguments import ToolParser, whole


def add_arguments(parser: ToolParser) -> None:
    parser.add_argument('work_dir', help='work dir of the run')
    parser.add_argument('--out', help='folder for the page (default: WORK_DIR/pruning_report)')
    parser.add_argument('--images', type=whole(0), default=12, metavar='N', help='in each gallery')


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from ..report.report import write_report

    try:
        written = write_report(args.work_dir, args.out, args.images)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f'Report: {written}')
