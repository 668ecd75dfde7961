"""Trains one config with several methods, ratios and seeds; sets accuracy and cost side by side.

Each is a run of tools/train.py. Finished runs are kept: after an interruption, start it again.

Three rows are set beside the methods at equal wall time, with the same seed: `short` is full data
in the time of a pruned run, `long` is a pruned run in full data's time, and `small` is full data in
batches of the size that is kept, with as many iterations as fit into full data's time. Their
lengths follow from times that were measured: those of the row's own full-length run, less what its
first iteration took longer than the others; for `small`, of which there is none, those of a run of
a tenth of full data's iterations (at least 20) that is made and kept like the others but stands in
no table. The whole schedule is stretched with them (learning rate, validation, begin and end of
pruning). The learning rate itself stays as it is, also in smaller batches, unless the config turns
MMEngine's auto_scale_lr on.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import platform
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pfb_mmseg  # noqa: F401  comes first: it says what is missing or does not fit

# isort: split
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from _cli import ToolParser, add_config_options, read_config, seed_number
from _runs import Run, add_reuse_option, progress_bar, this_code, train
from pfb_mmseg.baselines.methods import (
    DESCRIPTIONS,
    PRUNING_METHODS,
    apply_method,
    full_iters,
    set_iters,
)
from pfb_mmseg.reporting.comparison import (
    HEADINGS,
    Outcome,
    cells,
    iters_in,
    markdown,
    plot,
    summarise,
)
from pfb_mmseg.segmentors.apply import add_import

ROWS = {**DESCRIPTIONS, 'long': 'a pruned run lengthened to the time that full data took'}


@dataclass(frozen=True)
class Row:
    """A line of the table: a method at a ratio, or a variant by options.

    Attributes:
        name: in the table and of its folder.
        method: how it is called in the plot.
        prune_ratio: None where nothing is pruned.
        config: what its runs are trained from, at first as long as full data's.
        as_long_as: name of the row whose wall time its runs are to take; None: they have the
            length that their config says.
        timed_by: name of the row whose runs tell what an iteration of this one takes.
        listed: whether it stands in the table.
    """

    name: str
    method: str
    prune_ratio: float | None
    config: Config
    as_long_as: str | None = None
    timed_by: str | None = None
    listed: bool = True


def main() -> None:
    parser = ToolParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='methods:\n' + '\n'.join(f'  {name:<15} {text}' for name, text in ROWS.items()),
    )
    parser.add_argument('config', help='config file, with PFB or without')
    parser.add_argument('--methods', nargs='+', choices=ROWS, default=[], metavar='METHOD')
    parser.add_argument(
        '--long',
        nargs='+',
        choices=PRUNING_METHODS,
        default=[],
        metavar='METHOD',
        help="which of --methods get a row `long`, in full data's time (default, with `--methods "
        'long`: hard if it is there, else pfb, else the first that prunes)',
    )
    parser.add_argument(
        '--ratios',
        nargs='+',
        type=float,
        default=[0.3, 0.5, 0.7],
        metavar='P',
        help='shares that each of the pruning methods leaves out (default: %(default)s)',
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        default=[],
        metavar='NAME[:KEY=VALUE,...]',
        help='further rows, the config with options: single:model.pfb.strategy=single_pass',
    )
    parser.add_argument('--seeds', nargs='+', type=seed_number, default=[0, 1, 2])
    parser.add_argument(
        '--iters', type=int, help="of full data; shortens the config's whole schedule to it"
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs at a time; times then disturb each other'
    )
    parser.add_argument('--gpus', type=int, default=1, help='processes of each run')
    add_reuse_option(parser)
    add_config_options(parser)
    parser.add_argument('--work-dir', default='work_dirs/compare')
    args = parser.parse_args()
    try:
        rows = plan(args)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    root = Path(args.work_dir) / Path(args.config).stem
    console = Console()
    with progress_bar(console) as progress:
        outcomes = run_all(rows, args, root, progress)
    report(outcomes, rows[0].name, args, root, console)


def plan(args: argparse.Namespace) -> list[Row]:
    """Turns the command line into rows, the one that the others are compared with first.

    Raises:
        TypeError, ValueError: an argument is outside its range, or does not fit the config.
    """
    for name, value in (('--jobs', args.jobs), ('--gpus', args.gpus)):
        if value < 1:
            raise ValueError(f'{name} {value}: expected an integer >= 1')
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f'--seeds {" ".join(map(str, args.seeds))}: a seed stands there twice')
    for ratio in args.ratios:
        if not 0 < ratio < 1:
            raise ValueError(f'--ratios {ratio:g}: expected numbers in (0, 1)')
    if not args.methods and not args.variants:
        raise ValueError('nothing to compare: name --methods, --variants or both')
    base = read_config(args.config, args.cfg_options)
    variants = _read_variants(args.variants)
    full_iters(base)
    if base.get('val_dataloader') is None:
        raise ValueError('the config has no val_dataloader: there would be no mIoU to compare')
    add_import(base)
    base.custom_hooks = [*(base.get('custom_hooks') or []), dict(type='BudgetHook')]
    if args.iters is not None:
        set_iters(base, args.iters)

    methods = list(dict.fromkeys(args.methods))
    pruning = [method for method in methods if method in PRUNING_METHODS]
    lengthened = _lengthened(methods, pruning, args.long)
    _check_what_times_are_taken_of(methods, pruning, lengthened)
    rows = []
    for method in ('full', 'resize'):
        if method in methods:
            rows.append(_method_row(base, method, None, args.gpus))
    for ratio in dict.fromkeys(args.ratios):
        if 'short' in methods:
            rows.append(_short_row(base, ratio, 'pfb' if 'pfb' in pruning else pruning[0]))
        if 'small' in methods:
            rows += _small_rows(base, ratio)
        pruned = [_method_row(base, method, ratio, args.gpus) for method in pruning]
        rows += pruned
        rows += [_long_row(row) for row in pruned if row.method in lengthened]
    rows += [_variant_row(base, name, pairs) for name, pairs in variants.items()]
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f'two rows have one name: {", ".join(names)}')
    _build_models(rows)
    return rows


def run_all(
    rows: list[Row], args: argparse.Namespace, root: Path, progress: Progress
) -> list[Outcome]:
    """Trains what is not finished yet: first the rows that have a length, then those whose length
    follows from the times of these. Seed by seed, so that a slow spell meets all rows alike."""
    outcomes: dict[tuple[str, int], Outcome] = {}
    done = progress.add_task('all runs', total=len(rows) * len(args.seeds))

    def run(row: Row, seed: int) -> Outcome:
        config = copy.deepcopy(row.config)
        if row.as_long_as is not None:
            seconds = outcomes[row.as_long_as, seed].seconds
            set_iters(config, iters_in(seconds, outcomes[row.timed_by, seed]))
        config.randomness = {**config.get('randomness', {}), 'seed': seed}
        path = root / 'configs' / f'{row.name}_seed{seed}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        config.dump(path)
        work_dir = root / row.name / f'seed{seed}'
        name = f'{row.name} seed {seed}'
        finished = train(path, work_dir, {}, progress, name, args.gpus, args.reuse)
        progress.advance(done)
        return _outcome(row, seed, finished, args.gpus)

    for timed in (False, True):
        with ThreadPoolExecutor(args.jobs) as pool:
            futures: dict[tuple[str, int], Future] = {
                (row.name, seed): pool.submit(run, row, seed)
                for seed in args.seeds
                for row in rows
                if (row.as_long_as is not None) == timed
            }
            try:
                outcomes |= {key: future.result() for key, future in futures.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what is running already may finish
                raise
    return [outcomes[row.name, seed] for row in rows if row.listed for seed in args.seeds]


def report(
    outcomes: list[Outcome], reference: str, args: argparse.Namespace, root: Path, console: Console
) -> None:
    """Shows the table, in two parts for a narrow terminal; leaves it, the single runs and a plot in
    the work dir."""
    lines = summarise(outcomes, reference)
    results = f'mean ± std of {len(args.seeds)} seed(s), compared with {reference}'
    headings = list(HEADINGS.values())
    for title, part in ((results, slice(4)), ('what it cost', slice(4, None))):
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column(no_wrap=True)
        for heading in headings[part]:
            longest = max(map(len, heading.split()))
            table.add_column(escape(heading), justify='right', min_width=longest)
        for line in lines:
            table.add_row(line.row, *cells(line)[part])
        console.print(table)
    (root / 'table.md').write_text(markdown(lines))
    with open(root / 'runs.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, list(asdict(outcomes[0])))
        writer.writeheader()
        writer.writerows(asdict(outcome) for outcome in outcomes)
    everything = {
        'command': sys.argv,
        'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        'machine': platform.platform(),
        'versions': {'pfb_mmseg': this_code()['version'], 'torch': torch.__version__},
        'summary': [asdict(line) for line in lines],
        'runs': [asdict(outcome) for outcome in outcomes],
    }
    (root / 'comparison.json').write_text(json.dumps(everything, indent=1) + '\n')
    plot(lines, root / 'comparison.png')
    console.print(f'table.md, runs.csv, comparison.json and comparison.png: {root}/')


def _lengthened(methods: list[str], pruning: list[str], named: list[str]) -> list[str]:
    """The methods that get a row `long`."""
    for method in named:
        if method not in pruning:
            raise ValueError(
                f'--long {method}: its length follows from the times of a run at full length; '
                f'add {method} to --methods'
            )
    if named or 'long' not in methods:
        return named
    return [method for method in ('hard', 'pfb', *pruning) if method in pruning][:1]


def _check_what_times_are_taken_of(
    methods: list[str], pruning: list[str], lengthened: list[str]
) -> None:
    prunes = f'a method that prunes ({", ".join(PRUNING_METHODS)})'
    for row, wanted, needed in (
        ('short', 'short' in methods, f"'full' and {prunes}"),
        ('long', 'long' in methods or lengthened, f"'full' and {prunes}"),
        ('small', 'small' in methods, "'full'"),
    ):
        if wanted and ('full' not in methods or (prunes in needed and not pruning)):
            raise ValueError(
                f'--methods {row}: its length follows from measured times, so it takes {needed} '
                'beside it'
            )


def _short_row(base: Config, ratio: float, like: str) -> Row:
    """Full data in the time of a pruned run."""
    config = copy.deepcopy(base)
    apply_method(config, 'short')
    name = f'{_row_name("short", ratio)}-as-{like}'
    return Row(name, 'short', ratio, config, as_long_as=_row_name(like, ratio), timed_by='full')


def _long_row(row: Row) -> Row:
    """A pruned run in full data's time."""
    method = f'long-{row.method}'
    name = _row_name(method, row.prune_ratio)
    return Row(name, method, row.prune_ratio, row.config, as_long_as='full', timed_by=row.name)


def _small_rows(base: Config, ratio: float) -> list[Row]:
    """Full data in small batches and full data's time, behind the run that its pace is taken of."""
    config = copy.deepcopy(base)
    apply_method(config, 'small', ratio)
    name = _row_name('small', ratio)
    short = copy.deepcopy(config)
    set_iters(short, max(20, round(full_iters(base) / 10)))
    short.val_dataloader = short.val_evaluator = short.val_cfg = None
    pace = Row(f'{name}-pace', 'small', ratio, short, listed=False)
    return [pace, Row(name, 'small', ratio, config, as_long_as='full', timed_by=pace.name)]


def _method_row(base: Config, method: str, ratio: float | None, num_processes: int) -> Row:
    config = copy.deepcopy(base)
    apply_method(config, method, ratio, num_processes)
    return Row(_row_name(method, ratio), method, ratio, config)


def _row_name(method: str, ratio: float | None) -> str:
    return method if ratio is None else f'{method}-p{round(100 * ratio, 2):g}'


def _read_variants(variants: list[str]) -> dict[str, list[str]]:
    """NAME[:KEY=VALUE,...] -> its KEY=VALUE pairs, by name."""
    pairs: dict[str, list[str]] = {}
    for variant in variants:
        name, _, options = variant.partition(':')
        if not name or Path(name).name != name or name in pairs:
            raise ValueError(f'--variants {variant}: expected a name of its own, without slashes')
        pairs[name] = [option for option in options.split(',') if option]
        for option in pairs[name]:
            if not option.partition('=')[0] or '=' not in option:
                raise ValueError(f'--variants {variant}: {option!r}: expected KEY=VALUE')
    return pairs


def _variant_row(base: Config, name: str, pairs: list[str]) -> Row:
    config = copy.deepcopy(base)
    if pairs:
        parser = argparse.ArgumentParser()
        parser.add_argument('--options', nargs='+', action=DictAction)
        config.merge_from_dict(parser.parse_args(['--options', *pairs]).options)
    return Row(name, name, None, config)


def _build_models(rows: list[Row]) -> None:
    """A model that cannot be built is told of before the first run, not in the third hour."""
    for row in {row.method: row for row in rows if row.timed_by is None}.values():
        init_default_scope(row.config.get('default_scope', 'mmseg'))
        MODELS.build(copy.deepcopy(row.config.model))


def _outcome(row: Row, seed: int, run: Run, num_processes: int) -> Outcome:
    if row.listed and run.miou is None:
        sys.exit(
            f'{run.work_dir}: the run ended without a validation; lower train_cfg.val_interval'
        )
    budget = run.budget
    if 'loaded' not in budget:  # version 0.1 did not count them
        logged = run.sum('pfb/candidates') * num_processes
        budget['loaded'] = logged or budget['shallow']
    if run.logged('infobatch/candidates'):
        candidates = run.sum('infobatch/candidates')
    else:
        candidates = budget['loaded']
    return Outcome(
        row.name, row.method, row.prune_ratio, seed, run.miou, candidates=candidates, **budget
    )


if __name__ == '__main__':
    main()
