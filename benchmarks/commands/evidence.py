"""Measure what each option of the density estimate does.

Trains the plain network of a config once per seed and keeps, for every iteration, the vectors that
a scoring pass would hand to the estimator. Replays them through BatchPruner for one option changed
at a time, and prints a table. Streams are kept in the work dir: a second call only replays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pfb_mmseg.commands.arguments import KeyValueAction, ToolParser, add_config_options, seed_number


def add_arguments(parser: ToolParser) -> None:
    from benchmarks.evidence import CONFIG, OPTIONS

    parser.add_argument('--config', default=CONFIG, help='config of a plain segmentor')
    parser.add_argument('--seeds', type=seed_number, nargs='+', default=[0, 1, 2])
    parser.add_argument('--work-dir', help='folder for streams and table')
    add_config_options(parser)
    parser.add_argument(
        '--vary',
        nargs='+',
        choices=OPTIONS,
        default=list(OPTIONS),
        metavar='OPTION',
        help='options that are tried; all by default',
    )
    parser.add_argument(
        '--fix',
        nargs='+',
        action=KeyValueAction,
        default={},
        metavar='KEY=VALUE',
        help='options that hold in every row, e.g. exploration=0',
    )


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.progress import Progress

    from benchmarks import evidence
    from pfb_mmseg.commands.launch import named_config

    cfg = named_config(parser, args)
    work_dir = Path(args.work_dir or Path('work_dirs/evidence', Path(cfg.filename).stem))
    with Progress() as progress:
        table = evidence.measure(cfg, args.seeds, work_dir, progress, args.vary, args.fix)
    (work_dir / 'evidence.md').write_text(table)
    Console().print(Markdown(table))
    print(f'The table as Markdown: {work_dir / "evidence.md"}')
