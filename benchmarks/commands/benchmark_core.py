"""Print what a decision costs.

Times pooling, density, selection and update for a batch, on one CPU core and, where there is one,
on a GPU, and counts what that launches there; beside it scikit-learn's KernelDensity on the same
data, and how time and memory grow when the batch, the number of centroids or the length of the
representation is doubled.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pfb_mmseg.commands.arguments import ToolParser

NEEDS_MMSEG = False


def add_arguments(parser: ToolParser) -> None:
    parser.add_argument(
        '--seconds', type=float, default=1.0, help='measured for each line (default: 1)'
    )
    parser.add_argument(
        '--no-growth', action='store_true', help='leave out how time and memory grow with the sizes'
    )
    parser.add_argument('--out', metavar='FILE', help='write everything to this JSON file')


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if not args.seconds > 0:
        parser.error(f'--seconds {args.seconds:g}: expected a number > 0')
    from benchmarks.decision import print_all

    found = print_all(args.seconds, growth=not args.no_growth)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + '\n')
