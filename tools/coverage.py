"""Tries PFB on every model of the installed zoo: `python tools/coverage.py --out coverage.md`.

A line per combination of segmentor, backbone and decode head; no data and no GPU are needed.
"""

import json
import logging
import os
import re
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from _cli import ToolParser
from pfb_mmseg.reporting import coverage


def main() -> None:
    parser = ToolParser(description='Try PFB on every model of the installed zoo.')
    parser.add_argument(
        '--quick', action='store_true', help='one small model for each family of backbones'
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
    args = parser.parse_args()
    if args.out and args.out.suffix not in ('.md', '.json'):
        parser.error(f'--out {args.out}: expected a file that ends in .md or .json')
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: expected at least 1')

    root = coverage.zoo_root()
    console = Console(stderr=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ProcessPoolExecutor(args.jobs, get_context('spawn'), _quieten, (threads,)) as pool:
        if args.quick:
            combinations = coverage.quick_combinations(root)
        else:
            combinations = _find(pool, root, console)
        combinations = [c for c in combinations if args.only is None or args.only in str(c)]
        if not combinations:
            parser.error(f'--only {args.only}: no combination of the zoo has this in its name')
        futures = [pool.submit(coverage.cover, combination) for combination in combinations]
        results = []
        for future in track(
            as_completed(futures), 'Trying models', len(futures), console=console, transient=True
        ):
            results.append(future.result())
            print(coverage.to_line(results[-1]), flush=True)

    results.sort(key=lambda r: (r.segmentor, r.backbone, r.head))
    print(coverage.summary(results))
    if args.out:
        as_json = json.dumps([asdict(result) for result in results], indent=1)
        text = coverage.to_markdown(results) if args.out.suffix == '.md' else as_json
        args.out.write_text(text + '\n')
    sys.exit(any(result.plain and not result.pfb for result in results))


def _find(pool: ProcessPoolExecutor, root: Path, console: Console) -> list[coverage.Combination]:
    """The distinct combinations that PFB is for; says what is left out, and why."""
    found: dict[coverage.Combination, None] = {}
    left_out: Counter[str] = Counter()
    paths = coverage.list_configs(root)
    answers = pool.map(_read, paths, chunksize=8)
    for answer in track(answers, 'Reading configs', len(paths), console=console, transient=True):
        if isinstance(answer, str):
            left_out[answer] += 1
        elif answer.segmentor not in coverage.SEGMENTORS:
            left_out[f'{answer.segmentor} is neither of {", ".join(coverage.SEGMENTORS)}'] += 1
        else:
            found.setdefault(answer)
    for reason, count in left_out.items():
        print(f'Left out: {count} config(s), {reason}')
    return sorted(found)


def _read(path: Path) -> coverage.Combination | str:
    try:
        return coverage.read_combination(path)
    except ImportError as error:
        imports = re.findall(r"'imports': \[?'([\w.]+)'", str(error))
        return f'{imports[0]} cannot be imported' if imports else str(error)


def _quieten(threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)


if __name__ == '__main__':
    main()
