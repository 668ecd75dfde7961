"""Runs of several methods and seeds, set against full data: figures, tables, plot."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..report.versions import installed_versions, this_code

# By which runs are made equally long: what BudgetHook calls it, and what the table does.
TIMES = {'cpu': ('cpu_seconds', 'CPU time'), 'wall': ('seconds', 'wall clock')}
# Of the columns, behind that of the metric.
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
_SHARES = {'cpu_saved': 'cpu_seconds', 'saved': 'seconds'}


@dataclass(frozen=True)
class Outcome:
    """One run. From ``iterations`` on, what BudgetHook measured; see there.

    Attributes:
        row, method, prune_ratio: see :class:`.rows.Row`.
        seed: rows are compared seed by seed.
        score: of the last validation, in percent; None if there was none.
        metric: what the score is: mIoU, or the top-1 accuracy of a classifier.
    """

    row: str
    method: str
    prune_ratio: float | None
    seed: int
    score: float | None
    metric: str | None
    iterations: int
    candidates: int
    loaded: int
    shallow: int
    deep: int
    backward: int
    seconds: float
    cpu_seconds: float
    startup_seconds: float
    startup_cpu_seconds: float
    peak_memory_mib: float


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        row, method, prune_ratio, metric: see Outcome.
        num_seeds: of its runs.
        means: of ``score`` and of each of :data:`HEADINGS`, over the seeds. ``difference`` is
            score - score of the reference with the same seed, the saved shares 1 - time / time of
            the reference; the reference itself has neither.
        stds: standard deviations of these (n - 1), with more than one seed.
    """

    row: str
    method: str
    prune_ratio: float | None
    metric: str | None
    num_seeds: int
    means: dict[str, float]
    stds: dict[str, float]

    def cell(self, key: str) -> str:
        """A mean with its standard deviation as it stands in the table; '-' if there is none."""
        if key not in self.means:
            return '-'
        mean, std = self.means[key], self.stds.get(key)
        if key in _SHARES:
            return f'{mean:.1%}'
        digits = {'score': 2, 'difference': 2, 'cpu_seconds': 1, 'seconds': 1}.get(key)
        if digits is None:  # counts, and memory
            return f'{mean:,.0f}'
        shown = f'{mean:{"+" if key == "difference" else ""}.{digits}f}'
        return shown if std is None else f'{shown} ± {std:.{digits}f}'


def equal_iters(target: Outcome, pace: Outcome, time: str, prune_ratio: float) -> tuple[int, bool]:
    """How many iterations take as long as another run did, at the pace of a run like them.

    What is pruned bounds the answer where a busy machine distorts the times: an iteration on all
    images takes at most 1 / (1 - p) times as long as one on the images kept. A quarter more is
    allowed on both sides; beyond that the nearest length allowed is taken.

    Args:
        target: the other run.
        pace: tells how long an iteration and a start take.
        time: one of :data:`TIMES`.
        prune_ratio: p.

    Returns:
        The iterations, and whether the times are taken as they were measured.
    """
    name = TIMES[time][0]
    startup = getattr(pace, f'startup_{name}')
    target_step, pace_step = (
        (getattr(run, name) - startup) / run.iterations for run in (target, pace)
    )
    ratio, most = target_step / pace_step, 1.25 / (1 - prune_ratio)
    bounded = min(max(ratio, 1 / most), most)
    return max(1, round(bounded * target.iterations)), bounded == ratio


def summarise(outcomes: Sequence[Outcome], reference: str) -> list[Line]:
    """One line for each row, in the order of their first outcomes.

    Args:
        outcomes: every row with the same seeds, and with scores.
        reference: name of the row that the others are compared with.
    """
    rows: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.row, {})[outcome.seed] = outcome
    return [_line(runs, rows[reference], row != reference) for row, runs in rows.items()]


def _line(runs: dict[int, Outcome], base: dict[int, Outcome], compared: bool) -> Line:
    first = next(iter(runs.values()))
    keys = [key for key in ('score', *HEADINGS) if hasattr(first, key)]
    values = {key: [getattr(run, key) for run in runs.values()] for key in keys}
    if compared:
        pairs = [(run, base[seed]) for seed, run in runs.items()]
        values['difference'] = [run.score - full.score for run, full in pairs]
        for key, time in _SHARES.items():
            values[key] = [1 - getattr(run, time) / getattr(full, time) for run, full in pairs]
    stds = {key: statistics.stdev(one) for key, one in values.items()} if len(runs) > 1 else {}
    means = {key: statistics.fmean(one) for key, one in values.items()}
    of = (first.row, first.method, first.prune_ratio, first.metric)
    return Line(*of, len(runs), means, stds)


def report(
    outcomes: Sequence[Outcome], reference: str, root: Path, console: Console, time: str
) -> None:
    """Shows the table, in two parts for a narrow terminal, on a console without markup; writes it,
    the single runs and a plot into ``root``. For the other arguments see :func:`summarise` and
    :func:`plot`.
    """
    lines = summarise(outcomes, reference)
    results = f'mean ± std of {lines[0].num_seeds} seed(s), compared with {reference}'
    columns = [*_headings_of(lines).items()]
    for title, part in ((results, columns[:6]), ('what it cost', columns[6:])):
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column(no_wrap=True)
        for _, heading in part:
            table.add_column(heading, justify='right', min_width=max(map(len, heading.split())))
        for line in lines:
            table.add_row(line.row, *(line.cell(key) for key, _ in part))
        console.print(table)
    (root / 'table.md').write_text(markdown(lines))
    everything = {**made_by(), 'summary': [*map(asdict, lines)], 'runs': [*map(asdict, outcomes)]}
    (root / 'comparison.json').write_text(json.dumps(everything, indent=1) + '\n')
    plot(lines, root / 'comparison.png', time)
    console.print(f'table.md, comparison.json and comparison.png: {root}/')


def made_by() -> dict[str, Any]:
    """What figures of this process come from."""
    made = dict(command=sys.argv, machine=platform.platform(), code=this_code()['version'])
    return {**made, **installed_versions()}


def _headings_of(lines: Sequence[Line]) -> dict[str, str]:
    return {'score': f'{lines[0].metric} [%]', **HEADINGS}


def markdown(lines: Sequence[Line]) -> str:
    """The table, ready for a README."""
    headings = _headings_of(lines)
    rows = [['method', *headings.values()], ['---', *['---:'] * len(headings)]]
    rows += [[line.row, *map(line.cell, headings)] for line in lines]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def plot(lines: Sequence[Line], path: Path, time: str) -> None:
    """A PNG of score against time, one of :data:`TIMES`; a line connects a method's ratios, bars
    are deviations.
    """
    key, name = TIMES[time]
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    # From the eleventh method on the colours come again.
    for index, method in enumerate(dict.fromkeys(line.method for line in lines)):
        points = [line for line in lines if line.method == method]
        axes.errorbar(
            [line.means[key] for line in points],
            [line.means['score'] for line in points],
            [line.stds.get('score', 0) for line in points],
            marker='os^D'[index // 10 % 4],
            capsize=3,
            label=method,
        )
    axes.set(xlabel=f'{name} of training [s]', ylabel=f'{lines[0].metric} [%]')
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right center')
    figure.savefig(path, dpi=120)
