"""Try PFB on every model of the installed zoo; no data and no GPU are needed.

Prints a line for each combination of segmentor, backbone and decode head. The exit status is 1 if
PFB fails on a model that trains without it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from pfb_mmseg.commands.arguments import ToolParser


def add_arguments(parser: ToolParser) -> None:
    parser.add_argument(
        '--quick', action='store_true', help='one small model for each family of backbones'
    )
    parser.add_argument(
        '--zoo',
        choices=('mmseg', 'mmpretrain'),
        default='mmseg',
        help='package whose models are tried (default: %(default)s)',
    )
    parser.add_argument(
        '--only',
        metavar='NAME',
        help='only combinations with this in their name, e.g. Swin or "UNet, FCNHead"',
    )
    parser.add_argument('--out', type=Path, help='write the table to this file, .md or .json')
    parser.add_argument(
        '--jobs',
        type=int,
        default=min(4, os.cpu_count() or 1),
        help='models tried at the same time, each by a process of its own (default: %(default)s)',
    )


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if args.out and args.out.suffix not in ('.md', '.json'):
        parser.error(f'--out {args.out}: expected a file that ends in .md or .json')
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: expected at least 1')
    from benchmarks import coverage, zoo
    from pfb_mmseg.commands.progress import shown

    with shown() as tell, coverage.several_processes(args.jobs) as pool:
        if args.quick:
            combinations = zoo.quick_combinations(zoo.zoo_root(args.zoo), args.zoo)
        else:
            combinations, left_out = coverage.find_all(pool, tell, args.zoo)
            for reason, count in left_out.items():
                print(f'Left out: {count} config(s), {reason}')
        combinations = [c for c in combinations if args.only is None or args.only in str(c)]
        if not combinations:
            parser.error(f'--only {args.only}: no combination of the zoo has this in its name')
        results = []
        for result in coverage.cover_all(pool, combinations, tell):
            results.append(result)
            print(coverage.to_line(result), flush=True)

    results.sort(key=lambda r: (r.segmentor, r.backbone, r.head))
    print(coverage.summary(results))
    if args.out:
        as_json = json.dumps([asdict(result) for result in results], indent=1)
        text = coverage.to_markdown(results) if args.out.suffix == '.md' else as_json
        args.out.write_text(text + '\n')
    sys.exit(any(result.plain and not result.pfb for result in results))
