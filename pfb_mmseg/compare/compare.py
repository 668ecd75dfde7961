"""Trains the rows of a comparison and writes down what came of them."""

from __future__ import annotations

import copy
import csv
import json
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..report.versions import this_code
from .comparison import TIMES, Outcome, cells, equal_iters, headings_of, markdown, plot, summarise
from .methods import set_iters
from .rows import Row
from .runs import Run, train


def run_all(
    rows: Sequence[Row],
    seeds: Sequence[int],
    root: Path,
    progress: Progress,
    jobs: int = 1,
    num_processes: int = 1,
    reuse: str = 'same',
    time: str = 'wall',
) -> list[Outcome]:
    """Trains what is not finished yet: first the rows that have a length, then those whose length
    follows from the times of these. Seed by seed, so that a slow spell meets all rows alike.

    Args:
        rows: see :func:`plan`.
        seeds: of each row.
        root: folder of the runs and their configs.
        progress: shows the runs and their iterations.
        jobs: runs at a time.
        num_processes: of each run.
        reuse: see :func:`train`.
        time: by which rows are equally long, one of :data:`TIMES`; with ``'cpu'`` each process has
            one thread, unless OMP_NUM_THREADS says otherwise: threads that wait for each other
            count, too.

    Returns:
        What came of each run of the rows that are listed.
    """
    outcomes: dict[tuple[str, int], Outcome] = {}
    done = progress.add_task('all runs', total=len(rows) * len(seeds))

    def run(row: Row, seed: int) -> Outcome:
        config = copy.deepcopy(row.config)
        if row.as_long_as is not None:
            target = getattr(outcomes[row.as_long_as, seed], TIMES[time][0])
            pace = outcomes[row.timed_by, seed]
            iters, as_measured = equal_iters(target, pace, time, row.prune_ratio)
            set_iters(config, iters)
            if not as_measured:
                progress.console.print(
                    f'{row.name} seed {seed}: the times of {row.as_long_as} and {row.timed_by} '
                    f'cannot be right, the machine was busy; {iters} iterations are the nearest '
                    f'length that {row.prune_ratio:.0%} pruned can explain',
                    highlight=False,
                    markup=False,
                )
        config.randomness = {**config.get('randomness', {}), 'seed': seed}
        path = root / 'configs' / f'{row.name}_seed{seed}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        config.dump(path)
        name = f'{row.name} seed {seed}'
        work_dir = run_folder(root, row.name, seed)
        finished = train(path, work_dir, {}, progress, name, num_processes, reuse, time == 'cpu')
        progress.advance(done)
        return _outcome(row, seed, finished)

    for timed in (False, True):
        with ThreadPoolExecutor(jobs) as pool:
            futures: dict[tuple[str, int], Future] = {
                (row.name, seed): pool.submit(run, row, seed)
                for seed in seeds
                for row in rows
                if (row.as_long_as is not None) == timed
            }
            try:
                outcomes |= {key: future.result() for key, future in futures.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what is running already may finish
                raise
    return [outcomes[row.name, seed] for row in rows if row.listed for seed in seeds]


def run_folder(root: Path, row: str, seed: int) -> Path:
    """Where :func:`run_all` keeps a run."""
    return root / row / f'seed{seed}'


def report(
    outcomes: Sequence[Outcome], reference: str, root: Path, console: Console, time: str = 'wall'
) -> None:
    """Shows the table, in two parts for a narrow terminal; leaves it, the single runs and a plot in
    the folder of the runs.

    Args:
        outcomes: of :func:`run_all`.
        reference: name of the row that the others are compared with.
        root: the folder.
        console: to show it on.
        time: that the plot shows, one of :data:`TIMES`.
    """
    lines = summarise(outcomes, reference)
    results = f'mean ± std of {lines[0].num_seeds} seed(s), compared with {reference}'
    headings = headings_of(lines)
    for title, part in ((results, slice(6)), ('what it cost', slice(6, None))):
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
        **made_by(),
        'summary': [asdict(line) for line in lines],
        'runs': [asdict(outcome) for outcome in outcomes],
    }
    (root / 'comparison.json').write_text(json.dumps(everything, indent=1) + '\n')
    plot(lines, root / 'comparison.png', time)
    console.print(f'table.md, runs.csv, comparison.json and comparison.png: {root}/')


def made_by() -> dict[str, Any]:
    """What figures of this process come from."""
    return {
        'command': sys.argv,
        'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        'machine': platform.platform(),
        'versions': {'pfb_mmseg': this_code()['version'], 'torch': torch.__version__},
    }


def _outcome(row: Row, seed: int, run: Run) -> Outcome:
    if row.config.get('val_dataloader') is not None and run.score is None:
        sys.exit(
            f'{run.work_dir}: the run ended without a validation; lower train_cfg.val_interval'
        )
    of = (row.name, row.method, row.prune_ratio, seed, run.score)
    return Outcome(*of, metric=run.metric, **run.budget)
