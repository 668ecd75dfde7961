"""Starts a function of a module here in processes of its own: one, or several as ranks of a group.

Each process runs processes.py SECONDS MODULE FUNCTION [ARGUMENT ...].
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from torch import distributed as dist

TESTS = Path(__file__).parent


def environment() -> dict[str, str]:
    """One thread, and no GPU: the same arithmetic in all processes, whoever starts them."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def start(
    function: Callable, *arguments: object, num_ranks: int = 1, seconds: int = 120, **popen
) -> list[subprocess.Popen]:
    """The processes, by rank, with stdout and stderr in one pipe each. They may be killed.

    Not by torchrun, whose workers would outlive it when it is killed.

    Args:
        function: of a module that they can import.
        arguments: what it gets, as strings.
        num_ranks: 1 is a process without a group.
        seconds: how long a rank waits for the others in a collective.
        **popen: options of subprocess.Popen.
    """
    command = [sys.executable, __file__, str(seconds), function.__module__, function.__name__]
    command += map(str, arguments)
    env, group = environment(), {}
    if num_ranks > 1:
        group = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), WORLD_SIZE=str(num_ranks))
    popen = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) | popen
    processes = []
    for rank in range(num_ranks):
        place = dict(RANK=str(rank), LOCAL_RANK=str(rank)) if group else {}
        processes.append(subprocess.Popen(command, env=env | group | place, **popen))
    return processes


def finish(processes: list[subprocess.Popen], timeout: float = 300) -> tuple[list[int], list[str]]:
    """The exit codes and the output of all, by rank, once they have ended by themselves."""
    try:
        with ThreadPoolExecutor(len(processes)) as pool:
            outputs = pool.map(lambda process: process.communicate(timeout=timeout)[0], processes)
        return [process.returncode for process in processes], list(outputs)
    finally:
        kill(processes)


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


def run(function: Callable, *arguments: object, num_ranks: int = 1) -> None:
    """:func:`start`, and all must come to a good end."""
    codes, outputs = finish(start(function, *arguments, num_ranks=num_ranks))
    assert not any(codes), '\n'.join(outputs)


def main(seconds: str, module: str, function: str, *arguments: str) -> None:
    if 'RANK' in os.environ:
        dist.init_process_group('gloo', timeout=timedelta(seconds=float(seconds)))
    getattr(import_module(module), function)(*arguments)
    if dist.is_initialized():  # else its threads may abort a process that is done
        dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
