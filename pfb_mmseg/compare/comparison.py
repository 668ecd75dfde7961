"""Runs of several methods and seeds, set against full data: figures, table, plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# By which runs are made equally long: what BudgetHook calls it, and what the table does.
TIMES = {'cpu': ('cpu_seconds', 'CPU'), 'wall': ('seconds', 'wall clock')}
# Behind that of the metric.
HEADINGS = {
    'difference': 'paired difference',
    'cpu_seconds': 'CPU [s]',
    'cpu_saved': 'CPU saved',
    'seconds': 'wall clock [s]',
    'saved': 'wall clock saved',
    'iterations': 'iters',
    'candidates': 'candidate images',
    'loaded': 'images loaded',
    'shallow': 'images shallow',
    'deep': 'images deep',
    'backward': 'images backward',
    'peak_memory_mib': 'peak memory [MiB]',
}
_COUNTS = list(HEADINGS)[5:]


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        row: name of the line of the table that it belongs to.
        method: what it was trained with.
        prune_ratio: None where nothing is pruned, or where the row does not say.
        seed: of the run; rows are compared seed by seed.
        score: of the last validation, in percent; None if there was none.
        seconds: of training, wall clock with loading and without validation.
        iterations: number of optimizer steps.
        candidates: images that could have been trained on.
        loaded: images that the data loader handed out.
        shallow, deep, backward: images through the backbone's shallow part, through the deep part,
            and backward, see BudgetHook.
        peak_memory_mib: see BudgetHook.
        cpu_seconds: of training, time of the processors without validation, see BudgetHook.
        startup_seconds, startup_cpu_seconds: of these, those that a run spends once.
        metric: what the score is: mIoU, or the top-1 accuracy of a classifier.
    """

    row: str
    method: str
    prune_ratio: float | None
    seed: int
    score: float | None
    seconds: float
    iterations: int
    candidates: int
    loaded: int
    shallow: int
    deep: int
    backward: int
    peak_memory_mib: float
    cpu_seconds: float
    startup_seconds: float = 0.0
    startup_cpu_seconds: float = 0.0
    metric: str | None = 'mIoU'


@dataclass(frozen=True)
class Figures:
    """A line of the table: means over the seeds, with standard deviations (n - 1) where given.

    ``difference`` is the mean of (score - score of the reference with the same seed), ``saved`` and
    ``cpu_saved`` those of 1 - seconds / seconds of the reference, by the wall clock and in CPU
    seconds; None for the reference itself.
    """

    row: str
    method: str
    prune_ratio: float | None
    num_seeds: int
    metric: str | None
    score: float
    score_std: float | None
    difference: float | None
    difference_std: float | None
    cpu_seconds: float
    cpu_seconds_std: float | None
    cpu_saved: float | None
    seconds: float
    seconds_std: float | None
    saved: float | None
    iterations: float
    candidates: float
    loaded: float
    shallow: float
    deep: float
    backward: float
    peak_memory_mib: float


def equal_iters(target: float, run: Outcome, time: str, prune_ratio: float) -> tuple[int, bool]:
    """How many iterations take as long as another run did, at the pace of a run like them.

    Times that were measured on a busy machine may say anything. What is pruned bounds the answer:
    an iteration on all images takes at most 1 / (1 - p) times as long as one on the images kept. A
    quarter more is allowed on both sides; beyond that the nearest length allowed is taken.

    Args:
        target: seconds of the other run, by the same clock.
        run: tells the pace, and what a start takes.
        time: the clock, one of :data:`TIMES`.
        prune_ratio: p, of the slower and the quicker iteration.

    Returns:
        The iterations, and whether the times are taken as they were measured.
    """
    name = TIMES[time][0]
    seconds, startup = getattr(run, name), getattr(run, f'startup_{name}')
    share = (target - startup) / (seconds - startup)
    most = 1.25 / (1 - prune_ratio)
    bounded = min(max(share, 1 / most), most)
    return max(1, round(bounded * run.iterations)), bounded == share


def summarise(outcomes: Sequence[Outcome], reference: str) -> list[Figures]:
    """One line for each row, in the order of their first outcomes.

    Args:
        outcomes: every row with the same seeds.
        reference: the row that the others are compared with.

    Raises:
        ValueError: a row lacks a seed of the reference, or has another.
    """
    rows: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.row, {})[outcome.seed] = outcome
    base = rows[reference]
    for row, runs in rows.items():
        if runs.keys() != base.keys():
            raise ValueError(
                f'{row} has the seeds {sorted(runs)}, {reference} has {sorted(base)}: differences '
                'are taken seed by seed'
            )
    return [_figures(runs, base, row != reference) for row, runs in rows.items()]


def _figures(runs: dict[int, Outcome], base: dict[int, Outcome], compared: bool) -> Figures:
    first = next(iter(runs.values()))

    def values(key: str) -> list[float]:
        return [getattr(run, key) for run in runs.values()]

    def saved(key: str) -> float | None:
        shares = [1 - getattr(run, key) / getattr(base[seed], key) for seed, run in runs.items()]
        return statistics.fmean(shares) if compared else None

    differences = [run.score - base[seed].score for seed, run in runs.items()] if compared else []
    return Figures(
        row=first.row,
        method=first.method,
        prune_ratio=first.prune_ratio,
        num_seeds=len(runs),
        metric=first.metric,
        difference=statistics.fmean(differences) if compared else None,
        difference_std=_std(differences),
        cpu_saved=saved('cpu_seconds'),
        saved=saved('seconds'),
        **{
            key: statistics.fmean(values(key))
            for key in ('score', 'cpu_seconds', 'seconds', *_COUNTS)
        },
        **{f'{key}_std': _std(values(key)) for key in ('score', 'cpu_seconds', 'seconds')},
    )


def headings_of(lines: Sequence[Figures]) -> list[str]:
    """Of the columns behind the rows' names."""
    return [f'{lines[0].metric} [%]', *HEADINGS.values()]


def cells(line: Figures) -> list[str]:
    """What stands in a line of the table behind its name, in the order of :func:`headings_of`."""

    def saved(share: float | None) -> str:
        return '-' if share is None else f'{share:.1%}'

    return [
        spread(line.score, line.score_std),
        '-' if line.difference is None else spread(line.difference, line.difference_std, '+'),
        spread(line.cpu_seconds, line.cpu_seconds_std, digits=1),
        saved(line.cpu_saved),
        spread(line.seconds, line.seconds_std, digits=1),
        saved(line.saved),
        *(f'{getattr(line, key):,.0f}' for key in _COUNTS),
    ]


def markdown(lines: Sequence[Figures]) -> str:
    """The table, ready for a README."""
    headings = headings_of(lines)
    rows = [['method', *headings], ['---', *['---:'] * len(headings)]]
    rows += [[line.row, *cells(line)] for line in lines]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def plot(lines: Sequence[Figures], path: Path, time: str) -> None:
    """Score against time; a line connects a method's ratios, bars are deviations.

    Args:
        lines: of the table.
        path: of the PNG file.
        time: one of :data:`TIMES`.
    """
    from matplotlib.figure import Figure  # no display, and only where a plot is asked for

    key, name = TIMES[time]
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    # From the eleventh method on the colours come again.
    for index, method in enumerate(dict.fromkeys(line.method for line in lines)):
        points = [line for line in lines if line.method == method]
        axes.errorbar(
            [getattr(line, key) for line in points],
            [line.score for line in points],
            [line.score_std or 0 for line in points],
            marker='os^D'[index // 10 % 4],
            capsize=3,
            label=method,
        )
    axes.set(xlabel=f'{name} of training [s]', ylabel=f'{lines[0].metric} [%]')
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right center')
    figure.savefig(path, dpi=120)


def _std(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def spread(mean: float, std: float | None, sign: str = '', digits: int = 2) -> str:
    """A mean with its standard deviation, if there is one."""
    return f'{mean:{sign}.{digits}f}' + ('' if std is None else f' ± {std:.{digits}f}')
