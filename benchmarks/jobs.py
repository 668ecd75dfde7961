"""Commands whose results are kept: a second call does what the first one did not get done."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfb_mmseg.report.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]  # the checkout: tools, tests and configs lie there
Execute = Callable[[list[str], Path, float], int]


@dataclass(frozen=True)
class Job:
    """A command that measures something.

    Attributes:
        part: what it belongs to.
        name: its own, within the part.
        arguments: of this Python; the first is a file, or ``-m`` and a module.
        timed: whether it takes ``--seconds``, how long it may measure.
        result: what it found, of its folder; None: what it wrote to its ``--out``.
    """

    part: str
    name: str
    arguments: tuple[str, ...]
    timed: bool = False
    result: Callable[[Path], Any] | None = None


@dataclass(frozen=True)
class Done:
    """What became of a job.

    Attributes:
        status: ``'done'``, or in words why not.
        command: to be called by hand.
        seconds: it took, start-up included.
        found: its result, plain data; None if it was not done.
        made_by: what it depends on beside the command: code, device, versions.
        ended: when, in seconds since the epoch.
    """

    part: str
    name: str
    status: str
    command: str
    seconds: float
    found: Any
    made_by: Mapping[str, str]
    ended: float

    @property
    def done(self) -> bool:
        return self.status == 'done'


class Jobs:
    """Runs jobs one after the other and remembers what came of them.

    Args:
        folder: holds, for each job, its log, its result and a stamp.
        made_by: code, device and versions; results of others are made again.
        minutes: that all jobs of this call may take. A job is begun while some are left.
        execute: runs a command with its output in a file, for at most so many seconds; returns its
            exit status.
        say: is told what happens.
    """

    def __init__(
        self,
        folder: Path,
        made_by: Mapping[str, str],
        minutes: float,
        execute: Execute | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder
        self.made_by = dict(made_by)
        self.ends = time.monotonic() + 60 * minutes
        self.execute = execute or run_process
        self.say = say
        self._done: dict[tuple[str, str], Done] = {}
        for stamp in folder.glob('*/*/done.json'):
            done = Done(**json.loads(stamp.read_text()))
            if done.made_by == self.made_by:
                self._done[done.part, done.name] = done

    @property
    def all(self) -> list[Done]:
        """What came of all jobs of this call and of earlier ones, in the order of their ends."""
        return sorted(self._done.values(), key=lambda done: done.ended)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.ends - time.monotonic())

    def folder_of(self, part: str, name: str) -> Path:
        return self.folder / part / re.sub(r'\W+', '-', name)

    def run(self, job: Job, seconds: float) -> Done:
        """What the job found, now or earlier.

        Args:
            job: to be run, unless it is done.
            seconds: it should take. Half of them go to ``--seconds``, the rest is its start-up.
        """
        earlier = self._done.get((job.part, job.name))
        if earlier is not None and earlier.done and earlier.command == _command(job):
            self.say(f'{job.part}, {job.name}: done before')
            return earlier
        done = self._done[job.part, job.name] = self._now(job, seconds)
        return done

    def _now(self, job: Job, seconds: float) -> Done:
        folder = self.folder_of(job.part, job.name)
        if not self.seconds_left:
            self.say(f'{job.part}, {job.name}: no time is left')
            return self._end(job, 'no time was left; the same command goes on from here', 0, None)
        folder.mkdir(parents=True, exist_ok=True)
        out, log = folder / 'out.json', folder / 'log.txt'
        out.unlink(missing_ok=True)
        command = [*job.arguments]
        if job.result is None:
            command += ['--out', str(out)]
        if job.timed:
            command += ['--seconds', f'{max(1.0, seconds / 2):.0f}']
        self.say(f'{job.part}, {job.name} ...')
        started = time.monotonic()
        status = self.execute(command, log, max(300.0, 2 * self.seconds_left))
        took = time.monotonic() - started
        if status:
            lines = [line for line in log.read_text().splitlines() if line.strip()]
            why = f'failed ({status}): {lines[-1].strip() if lines else "no output"} (see {log})'
            self.say(f'{job.part}, {job.name}: {why}')
            return self._end(job, why, took, None)
        found = json.loads(out.read_text()) if job.result is None else job.result(folder)
        done = self._end(job, 'done', took, found)
        write_atomically(folder / 'done.json', json.dumps(asdict(done)).encode())
        self.say(f'{job.part}, {job.name}: {took:.0f} s')
        return done

    def _end(self, job: Job, status: str, seconds: float, found: Any) -> Done:
        command, now = _command(job), time.time()
        return Done(job.part, job.name, status, command, seconds, found, self.made_by, now)


def _command(job: Job) -> str:
    return shlex.join(['python', *job.arguments])


def run_process(arguments: list[str], log: Path, timeout: float) -> int:
    """Run this Python with arguments, in the folder that holds this package.

    Returns:
        The exit status; 124 if it took longer than ``timeout`` seconds and was ended.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    with open(log, 'w') as file:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, 'PYTHONPATH': path},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what it starts itself ends with it
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            file.write(f'\nended after {timeout:.0f} s\n')
            return 124
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
