"""Runs of several methods and seeds, set against full data: figures, table, plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Behind that of the metric.
HEADINGS = {
    'difference': 'paired difference',
    'saved': 'wall clock saved',
    'seconds': 'wall clock [s]',
    'iterations': 'iters',
    'candidates': 'candidate images',
    'loaded': 'images loaded',
    'shallow': 'images shallow',
    'deep': 'images deep',
    'backward': 'images backward',
    'memory': 'peak memory [MiB]',
}


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
        startup_seconds: of the seconds, those that a run spends once, see BudgetHook.
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
    startup_seconds: float = 0.0
    metric: str | None = 'mIoU'


@dataclass(frozen=True)
class Figures:
    """A line of the table: means over the seeds, with standard deviations (n - 1) where given.

    ``difference`` is the mean of (score - score of the reference with the same seed), ``saved``
    that of 1 - seconds / seconds of the reference (wall clock); both None for the reference itself.
    """

    row: str
    method: str
    prune_ratio: float | None
    num_seeds: int
    score: float
    score_std: float | None
    difference: float | None
    difference_std: float | None
    saved: float | None
    seconds: float
    seconds_std: float | None
    iterations: float
    candidates: float
    loaded: float
    shallow: float
    deep: float
    backward: float
    peak_memory_mib: float
    metric: str | None = 'mIoU'


def iters_in(seconds: float, run: Outcome) -> int:
    """How many iterations fit into a wall time at the pace of a run, after a start-up like its."""
    pace = (run.seconds - run.startup_seconds) / run.iterations
    return max(1, round((seconds - run.startup_seconds) / pace))


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
    lines = []
    for row, runs in rows.items():
        if runs.keys() != base.keys():
            raise ValueError(
                f'{row} has the seeds {sorted(runs)}, {reference} has {sorted(base)}: differences '
                'are taken seed by seed'
            )
        first = next(iter(runs.values()))
        scores = [run.score for run in runs.values()]
        seconds = [run.seconds for run in runs.values()]
        differences = [run.score - base[seed].score for seed, run in runs.items()]
        saved = [1 - run.seconds / base[seed].seconds for seed, run in runs.items()]
        compared = row != reference
        means = {
            key: statistics.fmean(getattr(run, key) for run in runs.values())
            for key in (
                'iterations',
                'candidates',
                'loaded',
                'shallow',
                'deep',
                'backward',
                'peak_memory_mib',
            )
        }
        lines.append(
            Figures(
                row=row,
                method=first.method,
                prune_ratio=first.prune_ratio,
                num_seeds=len(runs),
                score=statistics.fmean(scores),
                score_std=_std(scores),
                difference=statistics.fmean(differences) if compared else None,
                difference_std=_std(differences) if compared else None,
                saved=statistics.fmean(saved) if compared else None,
                seconds=statistics.fmean(seconds),
                seconds_std=_std(seconds),
                metric=first.metric,
                **means,
            )
        )
    return lines


def headings_of(lines: Sequence[Figures]) -> list[str]:
    """Of the columns behind the rows' names."""
    return [f'{lines[0].metric} [%]', *HEADINGS.values()]


def cells(line: Figures) -> list[str]:
    """What stands in a line of the table behind its name, in the order of :func:`headings_of`."""
    return [
        spread(line.score, line.score_std),
        '-' if line.difference is None else spread(line.difference, line.difference_std, '+'),
        '-' if line.saved is None else f'{line.saved:.1%}',
        spread(line.seconds, line.seconds_std, digits=1),
        *(
            f'{getattr(line, key):,.0f}'
            for key in ('iterations', 'candidates', 'loaded', 'shallow', 'deep', 'backward')
        ),
        f'{line.peak_memory_mib:,.0f}',
    ]


def markdown(lines: Sequence[Figures]) -> str:
    """The table, ready for a README."""
    headings = headings_of(lines)
    rows = [['method', *headings], ['---', *['---:'] * len(headings)]]
    rows += [[line.row, *cells(line)] for line in lines]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def plot(lines: Sequence[Figures], path: Path) -> None:
    """Score against wall clock saved; a line connects a method's ratios, bars are deviations."""
    from matplotlib.figure import Figure  # no display, and only where a plot is asked for

    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    # From the eleventh method on the colours come again.
    for index, method in enumerate(dict.fromkeys(line.method for line in lines)):
        points = [line for line in lines if line.method == method]
        axes.errorbar(
            [100 * (line.saved or 0) for line in points],
            [line.score for line in points],
            [line.score_std or 0 for line in points],
            marker='os^D'[index // 10 % 4],
            capsize=3,
            label=method,
        )
    axes.set(xlabel='wall clock of training saved [%]', ylabel=f'{lines[0].metric} [%]')
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right center')
    figure.savefig(path, dpi=120)


def _std(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def spread(mean: float, std: float | None, sign: str = '', digits: int = 2) -> str:
    """A mean with its standard deviation, if there is one."""
    return f'{mean:{sign}.{digits}f}' + ('' if std is None else f' ± {std:.{digits}f}')
