"""Trains the rows of a comparison in processes of their own; what a run logged."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress

from ..report import METRICS, read_scalars
from ..report.versions import this_code
from .budget_hook import BUDGET_NAME
from .comparison import Outcome, equal_iters
from .lengths import set_iters
from .rows import Row

# What a Python is asked for to train; works from a checkout and from an installed wheel.
TRAIN = ('-m', 'pfb_mmseg.commands', 'train')
_PACKAGES = Path(__file__).resolve().parents[2]  # the folder that this package lies in


def last_score(work_dir: Path) -> tuple[str | None, float | None]:
    """What the last validation of a run measured, one of :data:`METRICS`, and its value in percent;
    None if there was none."""
    _, val = read_scalars(work_dir)
    logged = val[-1] if val else {}
    found = ((name, logged[key]) for name, key in METRICS.items() if key in logged)
    return next(found, (None, None))


def run_all(
    rows: Sequence[Row],
    seeds: Sequence[int],
    root: Path,
    progress: Progress,
    num_processes: int = 1,
    time: str = 'wall',
) -> list[Outcome]:
    """Trains in folders below ``root`` what is not finished yet, and returns what came of each run
    of the rows that are listed.

    First the rows that have a length, then those whose length follows from the times of these, by
    the clock ``time``, one of :data:`TIMES`. Seed by seed, so that a slow spell meets all rows
    alike. By ``'cpu'`` each process has one thread, unless OMP_NUM_THREADS says otherwise: threads
    that wait for each other count, too.
    """
    outcomes: dict[tuple[str, int], Outcome] = {}
    done = progress.add_task('all runs', total=len(rows) * len(seeds))
    known = [row for row in rows if row.as_long_as is None]
    timed = [row for row in rows if row.as_long_as is not None]
    for seed, row in [*product(seeds, known), *product(seeds, timed)]:
        config = _config_of(row, seed, outcomes, time, progress.console)
        path = root / 'configs' / f'{row.name}_seed{seed}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        config.dump(path)
        work_dir = run_folder(root, row.name, seed)
        name = f'{row.name} seed {seed}'
        train(path, work_dir, progress, name, num_processes, one_thread=time == 'cpu')
        progress.advance(done)
        metric, score = last_score(work_dir)
        if config.get('val_dataloader') is not None and score is None:
            sys.exit(
                f'{work_dir}: the run ended without a validation; lower train_cfg.val_interval'
            )
        budget = json.loads((work_dir / BUDGET_NAME).read_text())
        of = row.name, row.method, row.prune_ratio, seed
        outcomes[row.name, seed] = Outcome(*of, score, metric, **budget)
    return [outcomes[row.name, seed] for row in rows if row.listed for seed in seeds]


def _config_of(
    row: Row, seed: int, outcomes: Mapping[tuple[str, int], Outcome], time: str, console: Console
) -> Config:
    """Of a run, as long as the times of others say."""
    config = copy.deepcopy(row.config)
    config.randomness = {**config.get('randomness', {}), 'seed': seed}
    if row.as_long_as is None:
        return config
    target, pace = outcomes[row.as_long_as, seed], outcomes[row.timed_by, seed]
    iters, as_measured = equal_iters(target, pace, time, row.prune_ratio)
    set_iters(config, iters)
    if not as_measured:
        console.print(
            f'{row.name} seed {seed}: the times of {row.as_long_as} and {row.timed_by} cannot be '
            f'right, the machine was busy; {iters} iterations are the nearest length that '
            f'{row.prune_ratio:.0%} pruned can explain'
        )
    return config


def run_folder(root: Path, row: str, seed: int) -> Path:
    """Where :func:`run_all` keeps a run."""
    return root / row / f'seed{seed}'


def train(
    config: str | Path,
    work_dir: Path,
    progress: Progress,
    name: str,
    num_processes: int = 1,
    one_thread: bool = False,
) -> None:
    """Run `pfb train` from scratch in ``work_dir``, by torchrun where there are several processes,
    unless that holds a finished run of the very same command, config and code of this package.

    What an unfinished or another run left there is removed. What is decided, and why, is printed.
    """
    work_dir = work_dir.resolve()
    command = [*TRAIN, str(config), '--work-dir', str(work_dir)]
    if num_processes > 1:
        launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
        command = [*launch, str(num_processes), *command, '--launcher', 'pytorch']
    command = [sys.executable, *command]
    stamp = work_dir / 'finished'
    code = this_code()
    made_from = {'command': command, 'config': Path(config).read_text(), 'code': code['digest']}
    if stamp.is_file():
        found = json.loads(stamp.read_text())
        by = found.pop('version')
        if found == made_from:
            progress.console.print(f'{name}: reused, finished before by {by}')
            return
        other = 'other code' if found['code'] != code['digest'] else 'another command or config'
        progress.console.print(f'{name}: run again, the one finished before by {by} had {other}')
    if (work_dir / 'console.log').is_file():
        shutil.rmtree(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    env = {**({'OMP_NUM_THREADS': '1'} if one_thread else {}), **environment()}
    task = progress.add_task(name, total=None)
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with (
        open(work_dir / 'console.log', 'w', buffering=1) as log,
        subprocess.Popen(command, env=env, **pipe) as process,
    ):
        for line in process.stdout:
            log.write(line)
            if found := re.search(r'Iter\(train\) \[ *(\d+)/(\d+)\]', line):
                done, total = map(int, found.groups())
                progress.update(task, completed=done, total=total)
    progress.remove_task(task)
    if process.returncode:
        sys.exit(f'{name}: training failed, see {log.name}')
    stamp.write_text(json.dumps({**made_from, 'version': code['version']}, indent=1) + '\n')
    metric, score = last_score(work_dir)
    progress.console.print(name if score is None else f'{name}: {metric} {score:.2f}')


def environment() -> dict[str, str]:
    """Of a process that is to import this package, wherever it is called and whatever version is
    installed."""
    path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'PYTHONSAFEPATH': '1'}
