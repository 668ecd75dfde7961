"""Starts a function of a module here in processes of its own: one, or several as ranks of a group.

They are forked from a server that has imported the packages once, and so begin at once. All have
its hash seed; where ranks are to differ in that, they need a Python each.
"""

import gc
import os
import socket
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from torch import distributed as dist

# One thread, and no GPU: the same arithmetic in all processes. Both are looked up by imports.
ENVIRONMENT = dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
SERVER = get_context('forkserver')
SERVER.set_forkserver_preload(['mmseg.apis', 'pfb_mmseg', 'torch.distributed.fsdp'])


class Process:
    """One that calls ``function(*arguments)``; it may be killed.

    Attributes:
        output: what it has written to stdout and stderr so far.
        returncode: None while it runs.
    """

    def __init__(self, function: Callable, arguments: tuple, env: dict, seconds: float) -> None:
        self._log = tempfile.NamedTemporaryFile()
        arguments = (function, arguments, env, seconds, self._log.name)
        self._process = SERVER.Process(target=_begin, args=arguments)
        with patch.dict(os.environ, ENVIRONMENT):  # the first one starts the server
            self._process.start()

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text(errors='replace')

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        """Until it has ended.

        Raises:
            TimeoutError: it has not within so many seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f'still running after {timeout:.0f} s:\n{self.output}')

    def kill(self) -> None:
        self._process.kill()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def group(num_ranks: int) -> list[dict[str, str]]:
    """What each rank of a group needs to know in its environment."""
    common = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), WORLD_SIZE=str(num_ranks))
    return [{**common, 'RANK': str(rank), 'LOCAL_RANK': str(rank)} for rank in range(num_ranks)]


def start(
    function: Callable, *arguments: object, num_ranks: int = 1, seconds: float = 120
) -> list[Process]:
    """The processes, by rank.

    Not by torchrun, whose workers would outlive it when it is killed.

    Args:
        function: of a module that they can import.
        arguments: what it gets, as strings.
        num_ranks: 1 is a process without a group.
        seconds: how long a rank waits for the others in a collective.
    """
    envs = group(num_ranks) if num_ranks > 1 else [{}]
    arguments = tuple(map(str, arguments))
    return [Process(function, arguments, env, seconds) for env in envs]


def finish(processes: list[Process], timeout: float = 300) -> tuple[list[int], list[str]]:
    """The exit codes and the output of all, by rank, once they have ended by themselves."""
    until = time.monotonic() + timeout
    try:
        for process in processes:
            process.wait(max(0, until - time.monotonic()))
        return [p.returncode for p in processes], [p.output for p in processes]
    finally:
        kill(processes)


def kill(processes: list[Process]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(60)


def run(function: Callable, *arguments: object, num_ranks: int = 1, timeout: float = 300) -> None:
    """:func:`start`, and all must come to a good end."""
    codes, outputs = finish(start(function, *arguments, num_ranks=num_ranks), timeout)
    assert not any(codes), '\n'.join(outputs)


def enter(function: Callable, *arguments: object, seconds: float = 120) -> None:
    """Calls it as a rank of the group that the environment describes, if there is one."""
    if 'RANK' in os.environ:
        dist.init_process_group('gloo', timeout=timedelta(seconds=seconds))
    function(*arguments)
    if dist.is_initialized():  # else its threads may abort a process that is done
        dist.destroy_process_group()


def _begin(function: Callable, arguments: tuple, env: dict, seconds: float, log: str) -> None:
    gc.freeze()  # the garbage that each run collects is none of what the server has imported
    with open(log, 'ab', buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    enter(function, *arguments, seconds=seconds)
