"""What a benchmark measured, set against the ideal: timing in turns, arithmetic, the table."""

from __future__ import annotations

import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_FEWEST = 3  # rounds, however long they take


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, in their unit."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method='inclusive')
        return cls(median, lower, upper)


@dataclass(frozen=True)
class Result:
    """One kind of step.

    Attributes:
        name: what was measured.
        step: seconds a training step takes.
        kept_share: images trained on / images in the batch, median over the steps.
        saved: share of the full step's time that this one saves.
        ideal: :func:`ideal_saving` of what was pruned.
        peak_memory: bytes on top of the model and its optimizer, None where it was not measured.
        syncs: calls in a step that make the host wait for the GPU; None where there is none.
    """

    name: str
    step: Spread
    kept_share: float
    saved: float
    ideal: float
    peak_memory: int | None
    syncs: int | None = None

    @property
    def of_ideal(self) -> float | None:
        """saved / ideal; None where nothing was pruned."""
        return self.saved / self.ideal if self.ideal else None


@dataclass(frozen=True)
class Report:
    """Blocked steps beside the full one.

    Attributes:
        setting: how it was measured, for the reader.
        results: the first one is the full step.
        shallow_share: s, time of the no-grad forward up to the blocking point / a full step's.
        estimator_share: what decides / a full step's time: pooling, density, selection and update,
            or an exit behind the shallow part, and selection.
        seconds: every single measurement.
    """

    setting: Mapping[str, object]
    results: Sequence[Result]
    shallow_share: float
    estimator_share: float
    seconds: Mapping[str, Sequence[float]]

    def to_dict(self) -> dict:
        """Plain data for a JSON file."""
        plain = asdict(self)
        for row, result in zip(plain['results'], self.results, strict=True):
            row['of_ideal'] = result.of_ideal
        return plain

    def show(self, console: Console) -> None:
        """Print the setting, the table and what it means."""
        for name, value in self.setting.items():
            console.print(f'{name}: {value}', markup=False, highlight=False, soft_wrap=True)
        console.print(self._table())
        console.print(
            f's, the no-grad forward up to the blocking point: {self.shallow_share:.2%} of a full '
            f'step. ideal = p (1 - s).\nEstimator or exit, selection, update: '
            f'{self.estimator_share:.3%} of a full step. Spread: between the quartiles.',
            highlight=False,
        )

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column('step', no_wrap=True)
        for column in (
            'kept',
            'median\ns',
            'spread\ns',
            'saved',
            'ideal',
            'saved/\nideal',
            'peak\nGiB',
            'of\nfull',
        ):
            table.add_column(column, justify='right')
        full_memory = self.results[0].peak_memory
        for result in self.results:
            step, memory, of_ideal = result.step, result.peak_memory, result.of_ideal
            table.add_row(
                result.name,
                f'{result.kept_share:.0%}',
                f'{step.median:.3f}',
                f'{step.upper_quartile - step.lower_quartile:.3f}',
                f'{result.saved:.1%}',
                f'{result.ideal:.1%}',
                '–' if of_ideal is None else f'{of_ideal:.1%}',
                '–' if memory is None else f'{memory / 2**30:.2f}',
                '–' if not memory or not full_memory else f'{memory / full_memory:.0%}',
            )
        return table


def ideal_saving(prune_ratio: float, shallow_share: float) -> float:
    """p (1 - s): pruned images cost their forward pass up to the blocking point and nothing else.

    Args:
        prune_ratio: p, share of the images that is pruned.
        shallow_share: s, share of a full step that the forward up to the blocking point takes.
    """
    return prune_ratio * (1 - shallow_share)


def time_in_turns(
    workloads: Mapping[str, Callable[[int], None]],
    rounds: int,
    warmup: int,
    synchronize: Callable[[], None],
    after_each: Callable[[], None],
    limit: float = math.inf,
) -> dict[str, list[float]]:
    """Time several workloads side by side, so that a change of the machine's speed hits them all.

    Args:
        workloads: called with the number of the round, once in each, in an order drawn anew.
        rounds: measured calls of each workload, at least 1.
        warmup: rounds before these, not measured.
        synchronize: waits until the device has done all that was asked of it.
        after_each: called after every call, for a progress bar.
        limit: seconds after which no other round is begun, once three are measured.

    Returns:
        Seconds of each workload in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    order = list(workloads)
    shuffle = random.Random(0).shuffle
    for index in range(warmup + rounds):
        if index == warmup:
            started = time.perf_counter()
        if index >= warmup + _FEWEST and time.perf_counter() - started > limit:
            break
        shuffle(order)
        for name in order:
            synchronize()
            called = time.perf_counter()
            workloads[name](index)
            synchronize()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - called)
            after_each()
    return seconds


def count_syncs(run: Callable[[], object]) -> int:
    """Number of calls in ``run()`` that make the host wait for the GPU, as far as torch tells."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            run()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return sum('called a synchronizing' in str(warning.message) for warning in caught)
