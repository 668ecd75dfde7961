"""Trains variants of one config with several seeds, and sets their mIoU and time side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from _cli import ToolParser, seed_number
from _runs import Run, progress_bar, train


def main() -> None:
    parser = ToolParser(
        description='Each variant is a run of tools/train.py per seed; finished runs are kept.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--variants',
        nargs='+',
        required=True,
        metavar='NAME[:KEY=VALUE,...]',
        help='what differs, as with --cfg-options: two_pass single:model.pfb.strategy=single_pass; '
        'the first variant is what the others are compared with',
    )
    parser.add_argument('--seeds', nargs='+', type=seed_number, default=[0, 1, 2])
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--work-dir', default='work_dirs/compare')
    args = parser.parse_args()
    if not Path(args.config).is_file():
        parser.error(f'config {args.config!r} is not a file')
    common = dict(_key_value(parser, option) for option in args.cfg_options)
    variants = {}
    for variant in args.variants:
        name, _, options = variant.partition(':')
        if not name or Path(name).name != name or name in variants:
            parser.error(f'--variants {variant}: expected a name of its own, without slashes')
        pairs = [_key_value(parser, option) for option in options.split(',') if option]
        variants[name] = common | dict(pairs)

    console = Console()
    root = Path(args.work_dir) / Path(args.config).stem
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    with progress_bar(console) as progress:
        # Seed by seed, so that a slow spell of the machine meets all variants alike.
        for seed in args.seeds:
            for name, options in variants.items():
                options = options | {'randomness.seed': seed}
                work_dir = root / name / f'seed{seed}'
                runs[name].append(
                    train(args.config, work_dir, options, progress, f'{name} seed {seed}')
                )
    console.print(_table(runs))


def _key_value(parser: argparse.ArgumentParser, option: str) -> tuple[str, str]:
    key, equals, value = option.partition('=')
    if not equals:
        parser.error(f'{option!r}: expected KEY=VALUE')
    return key, value


def _table(runs: dict[str, list[Run]]) -> Table:
    table = Table(title=f'{len(next(iter(runs.values())))} seed(s): mean ± std')
    table.add_column('')
    for heading in ('mIoU [%]', 'paired difference', 'training time [s]', 'time saved'):
        table.add_column(heading, justify='right')
    first_miou, first_time = _values(next(iter(runs.values())))
    for index, (name, of_variant) in enumerate(runs.items()):
        miou, time = _values(of_variant)
        compared = [_spread(miou - first_miou), f'{(1 - time / first_time).mean():.1%}']
        difference, saved = compared if index else ('-', '-')
        table.add_row(name, _spread(miou), difference, _spread(time), saved)
    return table


def _values(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([run.miou for run in runs]), np.array([run.total_time for run in runs])


def _spread(values: np.ndarray) -> str:
    std = f' ± {values.std(ddof=1):.2f}' if len(values) > 1 else ''
    return f'{values.mean():.2f}{std}'


if __name__ == '__main__':
    main()
