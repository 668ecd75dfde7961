"""Write a page that shows which images a run with PFB skipped.

The run may be finished, interrupted or still going. Call it where the training was called.
"""

from __future__ import annotations

import argparse

from .arguments import ToolParser


def add_arguments(parser: ToolParser) -> None:
    parser.add_argument('work_dir', help='work dir of the run')
    parser.add_argument('--out', help='folder for the page (default: WORK_DIR/pruning_report)')
    parser.add_argument('--images', type=int, default=12, metavar='N', help='in each gallery')
    parser.add_argument(
        '--scan-seconds',
        type=float,
        default=20,
        metavar='S',
        help='how long to run the model over images, to find those closest to the busiest '
        'centroids; 0: not at all',
    )


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if args.images < 0 or args.scan_seconds < 0:
        parser.error('--images and --scan-seconds must not be negative')
    from ..report.report import write_report
    from .progress import shown

    try:
        with shown() as tell:
            written = write_report(args.work_dir, args.out, args.images, args.scan_seconds, tell)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f'Report: {written}')
