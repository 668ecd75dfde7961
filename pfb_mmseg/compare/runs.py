"""Training runs in processes of their own, and what they logged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..report import METRICS, read_scalars
from ..report.versions import this_code
from .budget_hook import BUDGET_NAME

# What a Python is asked for to train; works from a checkout and from an installed wheel.
TRAIN = ('-m', 'pfb_mmseg.commands', 'train')
_PACKAGES = Path(__file__).resolve().parents[2]  # the folder that this package lies in


class Run:
    """What a run logged.

    Attributes:
        metric: what validation measures, one of :data:`METRICS`; None if there was none.
        score: what it measured last, in percent; None if there was none.
        step_time: mean seconds of a training step for each entry in the log, without loading.
        wait_time: mean seconds before a step in which the data loader was waited for, likewise.
    """

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.train, val = read_scalars(work_dir)
        logged = val[-1] if val else {}
        self.metric = next((name for name, key in METRICS.items() if key in logged), None)
        self.score = logged.get(METRICS.get(self.metric))
        self.steps = np.array([entry['step'] for entry in self.train])
        # PFBHook writes an entry of its own where the run ends between two of the logger's.
        timed = [entry for entry in self.train if 'time' in entry]
        self.step_time = np.array([entry['time'] - entry['data_time'] for entry in timed])
        self.wait_time = np.array([entry['data_time'] for entry in timed])

    @property
    def budget(self) -> dict[str, Any]:
        """What BudgetHook measured."""
        return json.loads((self.work_dir / BUDGET_NAME).read_text())

    def sum(self, key: str) -> int:
        """Total of a scalar that each entry counts anew, if it has it."""
        return round(sum(entry.get(key, 0) for entry in self.train))

    def column(self, key: str) -> np.ndarray:
        """A scalar over the entries; NaN where it was not logged."""
        return np.array([entry.get(key, np.nan) for entry in self.train])


def progress_bar(console: Console) -> Progress:
    """For :func:`train`, of one run or several at a time."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.completed}/{task.total}'),
        TimeRemainingColumn(),
        console=console,
    )


def train(
    config: str | Path,
    work_dir: Path,
    options: dict,
    progress: Progress,
    name: str,
    num_processes: int = 1,
    reuse: str = 'same',
    one_thread: bool = False,
) -> Run:
    """Run the command `pfb train` from scratch in ``work_dir`` and follow its log.

    A work dir that holds a finished run of the very same command and config is taken as it is, if
    the same code of this package made it. What is decided, and why, is printed.

    Args:
        config: config file.
        work_dir: anything that an unfinished or another run left there is removed.
        options: as with --cfg-options.
        progress: shows the iterations; a line takes their place at the end.
        name: of the run on the progress bar.
        num_processes: more than one are started by torchrun.
        reuse: ``'any'`` takes a finished run whatever version of this package made it.
        one_thread: whether each process has one thread, unless OMP_NUM_THREADS says otherwise.
    """
    work_dir = work_dir.resolve()
    command = [sys.executable]
    if num_processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone']
        command += ['--nproc_per_node', str(num_processes)]
    command += [*TRAIN, str(config), '--work-dir', str(work_dir)]
    if num_processes > 1:
        command += ['--launcher', 'pytorch']
    if options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    stamp = work_dir / 'finished'
    made_from = {'command': command, 'config': Path(config).read_text()}
    code = this_code()
    if stamp.is_file():
        reused, why = _judge(stamp.read_text(), made_from, code, reuse)
        progress.console.print(f'{name}: {why}', highlight=False, markup=False)
        if reused:
            return Run(work_dir)
    if (work_dir / 'console.log').is_file():
        shutil.rmtree(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    threads = {'OMP_NUM_THREADS': '1'} if one_thread else {}
    task = progress.add_task(name, total=None)
    with (
        open(work_dir / 'console.log', 'w') as log,
        subprocess.Popen(
            command,
            env={**threads, **_with_this_package()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            log.write(line)
            if found := re.search(r'Iter\(train\) \[ *(\d+)/(\d+)\]', line):
                done, total = map(int, found.groups())
                progress.update(task, completed=done, total=total)
    progress.remove_task(task)
    if process.returncode:
        sys.exit(f'{name}: training failed, see {log.name}')
    stamp.write_text(json.dumps({**made_from, 'code': code}, indent=1) + '\n')
    run = Run(work_dir)
    progress.console.print(name if run.score is None else f'{name}: {run.metric} {run.score:.2f}')
    return run


def _judge(stamp: str, made_from: dict, code: dict[str, str], reuse: str) -> tuple[bool, str]:
    """Whether a finished run is taken as it is, and the reason in words."""
    found = json.loads(stamp)
    maker = found.pop('code')
    by = f'by {maker["version"]}'
    if found != made_from:
        return False, f'run again: the one finished {by} had another command or config'
    if maker['digest'] == code['digest']:
        return True, f'reused, finished before {by}'
    if reuse == 'any':
        return True, f'reused as --reuse any says, finished before {by}, this is {code["version"]}'
    return False, (
        f'run again: finished before {by}, whose code is not that of {code["version"]} '
        '(--reuse any keeps such runs)'
    )


def _with_this_package() -> dict[str, str]:
    """The environment of a process that is to import this package, whatever folder it is called in
    and whichever version is installed."""
    path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'PYTHONSAFEPATH': '1'}
