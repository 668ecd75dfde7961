"""The rows of a comparison: which runs it takes, and how long each of them is."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..convert.apply import add_import
from .by_iteration import count_iterations
from .methods import (
    DESCRIPTIONS,
    PRUNING_METHODS,
    WHOLE_METHODS,
    apply_method,
    full_iters,
    set_iters,
)

# Whose time `short` takes, and which is lengthened, where several methods prune.
_FIRST_CHOICES = ('hard', 'pfb')
ROWS = {**DESCRIPTIONS, 'long': 'a pruned run lengthened to the time that full data took'}


@dataclass(frozen=True)
class Row:
    """A line of the table: a method at a ratio, or a variant by options.

    Attributes:
        name: in the table and of its folder.
        method: how it is called in the plot.
        prune_ratio: None where nothing is pruned.
        config: what its runs are trained from, at first as long as full data's.
        as_long_as: name of the row whose time its runs are to take; None: they have the length that
            their config says.
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


def plan(
    base: Config,
    methods: Sequence[str] = (),
    ratios: Sequence[float] = (),
    variants: Sequence[str] = (),
    long: Sequence[str] = (),
    iters: int | None = None,
    num_processes: int = 1,
    scored: bool = True,
    time: str = 'wall',
) -> list[Row]:
    """The rows of a comparison, the one that the others are compared with first.

    Args:
        base: what is trained, with PFB or without; is changed.
        methods: of :data:`ROWS`.
        ratios: that each of the pruning methods leaves out, in (0, 1).
        variants: NAME[:KEY=VALUE,...], the config with options.
        long: of the methods that prune, those that also get full data's time. None named, but
            ``'long'`` among the methods: one of them.
        iters: of full data; None: as the config says.
        num_processes: of each run.
        scored: whether accuracy is compared too, and not time alone.
        time: by which rows are equally long, see :data:`TIMES`. With ``'cpu'`` the training
            process itself loads the images: what workers do is not measured.

    Raises:
        TypeError, ValueError: an argument is outside its range, or does not fit the config.
    """
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise ValueError(f'--ratios {ratio:g}: expected numbers in (0, 1)')
    if not methods and not variants:
        raise ValueError('nothing to compare: name --methods, --variants or both')
    options = _read_variants(variants)
    count_iterations(base, num_processes)
    full_iters(base)
    if scored and base.get('val_dataloader') is None:
        raise ValueError('the config has no val_dataloader: there would be no accuracy to compare')
    add_import(base)
    base.custom_hooks = [*(base.get('custom_hooks') or []), dict(type='BudgetHook')]
    if iters is not None:
        set_iters(base, iters)
    if time == 'cpu':
        _load_without_workers(base)

    methods = list(dict.fromkeys(methods))
    pruning = [method for method in methods if method in PRUNING_METHODS]
    lengthened = _lengthened(methods, pruning, long)
    _check_what_times_are_taken_of(methods, pruning, lengthened)
    rows = []
    for method in WHOLE_METHODS:
        if method in methods:
            rows.append(_method_row(base, method, None, num_processes))
    for ratio in dict.fromkeys(ratios):
        if 'short' in methods:
            rows.append(_short_row(base, ratio, _recommended(pruning)))
        if 'small' in methods:
            rows += _small_rows(base, ratio)
        pruned = [_method_row(base, method, ratio, num_processes) for method in pruning]
        rows += pruned
        rows += [_long_row(row) for row in pruned if row.method in lengthened]
    rows += [_variant_row(base, name, pairs) for name, pairs in options.items()]
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f'two rows have one name: {", ".join(names)}')
    _build_models(rows)
    return rows


def _lengthened(
    methods: Sequence[str], pruning: Sequence[str], named: Sequence[str]
) -> Sequence[str]:
    """The methods that get a row `long`."""
    for method in named:
        if method not in pruning:
            raise ValueError(
                f'--long {method}: its length follows from the times of a run at full length; '
                f'add {method} to --methods'
            )
    if named or 'long' not in methods:
        return named
    return [_recommended(pruning)] if pruning else []


def _recommended(pruning: Sequence[str]) -> str:
    return next(method for method in (*_FIRST_CHOICES, *pruning) if method in pruning)


def _check_what_times_are_taken_of(
    methods: Sequence[str], pruning: Sequence[str], lengthened: Sequence[str]
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


def _load_without_workers(config: Config) -> None:
    loader = config.train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)  # torch refuses it without workers


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


def _read_variants(variants: Sequence[str]) -> dict[str, list[str]]:
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
