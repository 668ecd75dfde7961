"""Training runs in processes of their own, and what they logged."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pfb_mmseg.reporting import read_scalars

ROOT = Path(__file__).resolve().parent.parent


class Run:
    """What a run logged.

    Attributes:
        miou: of the last validation, in percent; None if there was none.
        step_time: mean seconds of a training step for each entry in the log, without loading.
        total_time: seconds of all training steps.
    """

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.train, val = read_scalars(work_dir)
        self.miou = val[-1].get('mIoU') if val else None
        self.steps = np.array([entry['step'] for entry in self.train])
        # PFBHook writes an entry of its own where the run ends between two of the logger's.
        timed = [entry for entry in self.train if 'time' in entry]
        self.step_time = np.array([entry['time'] - entry['data_time'] for entry in timed])
        steps = np.diff([entry['step'] for entry in timed], prepend=0)
        self.total_time = float((self.step_time * steps).sum())

    def logged(self, key: str) -> bool:
        """Whether a scalar is there at all."""
        return any(key in entry for entry in self.train)

    def sum(self, key: str) -> int:
        """Total of a scalar that each entry counts anew, if it has it."""
        return round(sum(entry.get(key, 0) for entry in self.train))

    def column(self, key: str) -> np.ndarray:
        """A scalar over the entries; NaN where it was not logged."""
        return np.array([entry.get(key, np.nan) for entry in self.train])


def progress_bar(console) -> Progress:
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
) -> Run:
    """Run tools/train.py from scratch in ``work_dir`` and follow its log.

    A work dir that holds a finished run of the very same command and config is taken as it is.

    Args:
        config: config file.
        work_dir: anything that an unfinished or another run left there is removed.
        options: as with --cfg-options.
        progress: shows the iterations; a line takes their place at the end.
        name: of the run on the progress bar.
        num_processes: more than one are started by torchrun.
    """
    work_dir = work_dir.resolve()
    command = [sys.executable]
    if num_processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone']
        command += ['--nproc_per_node', str(num_processes)]
    command += [str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir)]
    if num_processes > 1:
        command += ['--launcher', 'pytorch']
    if options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    stamp = work_dir / 'finished'
    made_from = '\n'.join(command) + f'\n\n{Path(config).read_text()}'
    if stamp.is_file() and stamp.read_text() == made_from:
        progress.console.print(f'{name} was finished before')
        return Run(work_dir)
    if (work_dir / 'console.log').is_file():
        shutil.rmtree(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(name, total=None)
    with (
        open(work_dir / 'console.log', 'w') as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
    stamp.write_text(made_from)
    run = Run(work_dir)
    progress.console.print(name if run.miou is None else f'{name}: mIoU {run.miou:.2f}')
    return run
