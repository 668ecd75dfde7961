"""What differs between devices: CUDA, and whatever else torch knows or is taught by a plug-in.

Each has a module of its own (``torch.cuda``, ``torch.mps``, ``torch.npu``) with functions of the
same names; ``torch.accelerator``, which stands for all of them, is younger than the oldest torch
that is supported.
"""

from __future__ import annotations

import inspect
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch


def device_module(device: torch.device) -> ModuleType | None:
    """``torch.cuda`` and its like; None for a device that has none."""
    return getattr(torch, device.type, None)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the random generators of the host and of a device back on exit."""
    module = device_module(device)
    get = getattr(module, 'get_rng_state', None)
    with torch.random.fork_rng(devices=[]):
        if device.type == 'cpu' or get is None:
            yield
            return
        # torch.mps has one device only, and takes no argument for it.
        args = [device] if inspect.signature(get).parameters else []
        state = get(*args)
        try:
            yield
        finally:
            module.set_rng_state(state, *args)


def forget_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of :func:`peak_memory`, where the device keeps one."""
    reset = getattr(device_module(device), 'reset_peak_memory_stats', None)
    if reset is not None:
        reset(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes that were allocated on a device.

    Of one that keeps no such count: what its driver holds (MPS), which hardly ever shrinks; else
    the largest resident set of this process.
    """
    module = device_module(device)
    if hasattr(module, 'max_memory_allocated'):
        return module.max_memory_allocated(device)
    if hasattr(module, 'driver_allocated_memory'):
        return module.driver_allocated_memory()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == 'darwin' else resident * 2**10
