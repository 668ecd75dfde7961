"""The rows of a comparison: which runs it takes, and how long each of them is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..convert.apply import add_import, type_name
from .image_weights import ImageWeights
from .lengths import count_iterations, full_iters, set_iters
from .methods import METHODS, PRUNING_METHODS, apply_method

ROWS = {**METHODS, 'long': 'a pruned run lengthened to the time that full data took'}


@dataclass(frozen=True)
class Row:
    """A line of the table: a method at a ratio, or a variant by options.

    Attributes:
        name: in the table and of its folder.
        method: how it is called in the plot.
        prune_ratio: None where nothing is pruned.
        config: of its runs.
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
    variants: Sequence[tuple[str, dict[str, Any]]] = (),
    iters: int | None = None,
    num_processes: int = 1,
    time: str = 'wall',
) -> list[Row]:
    """The rows of a comparison, the one that the others are compared with first.

    Args:
        base: what is trained, with PFB or without; is changed.
        methods: of :data:`ROWS`. ``'short'`` and ``'long'`` are of one method that prunes: of
            ``'hard'`` if it is there, else ``'pfb'``, else the first.
        ratios: that each of the pruning methods leaves out, in (0, 1).
        variants: names of further rows, and the options that each changes in the config.
        iters: of full data, at least 1; None: as the config says.
        num_processes: of each run.
        time: by which rows are equally long, one of :data:`.comparison.TIMES`. With ``'cpu'`` the
            training process itself loads the images: what workers do is not measured.

    Raises:
        TypeError, ValueError: an argument is outside its range, or does not fit the config.
    """
    if not methods and not variants:
        raise ValueError('nothing to compare: name --methods, --variants or both')
    pruning = [method for method in dict.fromkeys(methods) if method in PRUNING_METHODS]
    _check_what_times_are_taken_of(methods, pruning)
    measure_by_iteration(base, num_processes)
    if iters is not None:
        set_iters(base, iters)
    if time == 'cpu':
        base.train_dataloader.update(num_workers=0, persistent_workers=False)
        base.train_dataloader.pop('prefetch_factor', None)  # torch refuses it without workers

    def row_of(method: str, ratio: float | None) -> Row:
        config = copy.deepcopy(base)
        apply_method(config, method, ratio, num_processes)
        return Row(_row_name(method, ratio), method, ratio, config)

    first = next((method for method in ('hard', 'pfb', *pruning) if method in pruning), '')
    rows = [row_of('full', None)] if 'full' in methods else []
    for ratio in dict.fromkeys(ratios):
        like = _row_name(first, ratio)
        if 'short' in methods:
            row = row_of('short', ratio)
            name = f'{row.name}-as-{first}'
            rows.append(replace(row, name=name, as_long_as=like, timed_by='full'))
        if 'small' in methods:
            row = row_of('small', ratio)
            pace = _pace(row, full_iters(base))
            rows += [pace, replace(row, as_long_as='full', timed_by=pace.name)]
        rows += [row_of(method, ratio) for method in pruning]
        if 'long' in methods:
            method = f'long-{first}'
            row = replace(row_of(first, ratio), method=method, name=_row_name(method, ratio))
            rows.append(replace(row, as_long_as='full', timed_by=like))
    for name, options in variants:
        config = copy.deepcopy(base)
        config.merge_from_dict(options)
        rows.append(Row(name, name, None, config))
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f'two rows have one name: {", ".join(names)}')
    _build_models(rows)
    return rows


def measure_by_iteration(cfg: Config, num_processes: int = 1) -> None:
    """Makes a config one whose runs count iterations and are measured by BudgetHook.

    Raises:
        ValueError: it cannot count iterations, see :func:`.lengths.count_iterations`.
    """
    count_iterations(cfg, num_processes)
    full_iters(cfg)
    add_import(cfg)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='BudgetHook')]


def _check_what_times_are_taken_of(methods: Sequence[str], pruning: Sequence[str]) -> None:
    prunes = f"'full' and a method that prunes ({', '.join(PRUNING_METHODS)})"
    for row, needed in (('short', prunes), ('long', prunes), ('small', "'full'")):
        met = 'full' in methods and (pruning or row == 'small')
        if row in methods and not met:
            raise ValueError(
                f'--methods {row}: its length follows from measured times, so it takes {needed} '
                'beside it'
            )


def _pace(row: Row, full: int) -> Row:
    """A run of a tenth of full data's iterations, which tells what one in small batches takes."""
    config = copy.deepcopy(row.config)
    set_iters(config, max(20, round(full / 10)))
    config.val_dataloader = config.val_evaluator = config.val_cfg = None
    return replace(row, name=f'{row.name}-pace', config=config, listed=False)


def _row_name(method: str, ratio: float | None) -> str:
    return method if ratio is None else f'{method}-p{round(100 * ratio, 2):g}'


def _build_models(rows: list[Row]) -> None:
    """Refuses a model that cannot be built, or whose losses cannot be weighted, before any run."""
    for row in {row.method: row for row in rows if row.timed_by is None}.values():
        init_default_scope(row.config.get('default_scope', 'mmseg'))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the runs give them again, in their logs
            model = MODELS.build(copy.deepcopy(row.config.model))
        if 'InfoBatchHook' in [type_name(hook.get('type')) for hook in row.config.custom_hooks]:
            ImageWeights(model)
