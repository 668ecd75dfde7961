"""What a decision of 'rare' costs: ``python -m benchmarks.decision``.

Times pooling, density, selection and update for a batch, on one CPU core and, where there is one,
on a GPU, and counts what that launches there; beside it scikit-learn's KernelDensity on the same
data, and how time and memory grow when the batch, the number of centroids or the length of the
representation is doubled. A density comes after an update, as in training: until the next one the
estimator keeps what it has worked out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner, pool_features
from pfb_mmseg.core.density import bandwidth
from pfb_mmseg.core.selection import explored_log_density, keep_highest

try:
    import sklearn
    from sklearn.neighbors import KernelDensity
except ImportError:
    sklearn = None

CPU = torch.device('cpu')
CHANNELS, MAP = 1024, (16, 32)  # of a ResNet-50's third stage, for a 256x512 image with stride 16


class Size(NamedTuple):
    """N images, N_C centroids, D channels in a representation."""

    num: int
    num_centroids: int
    dim: int

    def __str__(self) -> str:
        return f'N={self.num}, N_C={self.num_centroids}, D={self.dim}'


PAPER = Size(16, 64, 128)
LARGE = Size(128, 512, 1024)  # large enough for the arithmetic to outweigh the calls


def print_all(seconds: float, growth: bool = True) -> dict[str, Any]:
    """Prints every table, of the CPU and of a GPU where there is one; plain data of the same.

    Args:
        seconds: measured for each line.
        growth: whether to tell how time and memory grow with the sizes.
    """
    torch.set_num_threads(1)
    # Having freed a large block, malloc keeps smaller ones at hand, as in a process that trains.
    torch.zeros(2**22)
    print(f'torch {torch.__version__}, {platform.machine()}, one CPU core, {PAPER}; ms per call\n')
    found = {
        'size': str(PAPER),
        'costs': {'cpu': print_costs(CPU, seconds)},
        'launches': {'cpu': print_launches(CPU)},
        'growth': print_growth(seconds) if growth else None,
    }
    if torch.cuda.is_available():
        print(f'{torch.cuda.get_device_name()}; ms per call\n')
        check_no_sync()
        found['costs']['cuda'] = print_costs(torch.device('cuda'), seconds)
        found['launches']['cuda'] = print_launches(torch.device('cuda'))
    return found


def print_costs(device: torch.device, seconds: float) -> dict[str, tuple[float, float]]:
    """The parts of a decision, and the whole: median and best in ms, by name."""
    features = list(torch.randn(32, PAPER.num, CHANNELS, device=device).abs())
    estimator = AdaptiveDensityEstimator(PAPER.num_centroids, PAPER.dim)
    pruner = ready_pruner(features, estimator)
    vectors = itertools.cycle(features)
    x = pool_features(features[0], PAPER.dim)
    kept = x[: PAPER.num // 2].contiguous()
    log_density = estimator.log_density(x)
    maps = torch.randn(PAPER.num, CHANNELS, *MAP, device=device)

    def update_then_density() -> None:
        estimator.update(kept)
        with torch.inference_mode():  # as the pruner calls it
            estimator.log_density(x)

    parts: dict[str, Callable[[], Any]] = {
        'pool (N, 1024)': lambda: pool_features(next(vectors), PAPER.dim),
        'update': lambda: estimator.update(kept),
        'update, then density': update_then_density,
        'density once more': lambda: estimator.log_density(x),
        'selection': lambda: keep_highest(-explored_log_density(log_density), len(kept)),
        '**all of it**: BatchPruner': lambda: pruner(next(vectors)),
        f'the same on maps (N, 1024, {MAP[0]}, {MAP[1]})': lambda: pruner(maps),
    }
    if sklearn is not None and device.type == 'cpu':
        scale = bandwidth(estimator.centroids).numpy()
        centroids, counts = estimator.centroids.numpy() / scale, estimator.counts.numpy().clip(1)
        rows = x.numpy() / scale

        def foreign() -> None:
            KernelDensity().fit(centroids, sample_weight=counts).score_samples(rows)

        parts[f'density by scikit-learn {sklearn.__version__}'] = foreign
    print('| | median | best |\n|---|---|---|')
    costs = {}
    for name, part in parts.items():
        median, best = costs[name] = timed(part, device, seconds)
        print(f'| {name} | {median:.3f} | {best:.3f} |')
    print()
    return costs


def print_growth(seconds: float) -> dict[str, tuple[float, float]]:
    """How time and memory change when each size is doubled: best ms and MiB, by size."""
    growth = {}
    print('| on the CPU | best | memory allocated, MiB |\n|---|---|---|')
    for base in (PAPER, LARGE):
        for size in [base, *(base._replace(**{n: 2 * v}) for n, v in base._asdict().items())]:
            features = list(torch.randn(8, size.num, size.dim).abs())
            pruner = ready_pruner(features, AdaptiveDensityEstimator(size.num_centroids, size.dim))
            step = lambda: pruner(features[0])  # noqa: B023, E731  called in this turn of the loop
            best, memory = growth[str(size)] = (
                timed(step, CPU, seconds)[1],
                allocated(step) / 2**20,
            )
            print(f'| {size} | {best:.3f} | {memory:.2f} |')
    print()
    return growth


def check_no_sync() -> None:
    """Raise if a decision makes the host wait for the GPU."""
    features = list(torch.randn(32, PAPER.num, CHANNELS, device='cuda').abs())
    pruner = ready_pruner(features, AdaptiveDensityEstimator(PAPER.num_centroids, PAPER.dim))
    torch.cuda.set_sync_debug_mode('error')
    pruner(features[0])
    torch.cuda.set_sync_debug_mode('default')
    print('No call waits for the GPU.\n')


def print_launches(device: torch.device, calls: int = 100) -> float:
    """Kernels, copies and fills that a decision launches on a GPU, from the vectors on; on the CPU
    the operators that call no other. The mean of as many decisions as it takes for the review of
    idle centroids to come round."""
    features = list(torch.randn(8, PAPER.num, CHANNELS, device=device).abs())
    pruner = ready_pruner(features, AdaptiveDensityEstimator(PAPER.num_centroids, PAPER.dim))
    on_gpu = device.type == 'cuda'
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as profiled:
        for _ in range(calls):
            pruner(features[0])
        if on_gpu:
            torch.cuda.synchronize()
    if on_gpu:
        counted = [e for e in profiled.events() if e.device_type == DeviceType.CUDA]
    else:
        operators = [e for e in profiled.events() if e.name.startswith('aten::')]
        counted = [e for e in operators if not e.cpu_children]
    number = len(counted) / calls
    name = 'Kernels, copies and fills' if on_gpu else 'Operators that call no other'
    print(f'{name} in a decision: {number:.1f}\n')
    return number


def ready_pruner(features: Sequence[Tensor], estimator: AdaptiveDensityEstimator) -> BatchPruner:
    """A pruner that decides by this estimator, whose centroids are seeded.

    Args:
        features: batches to seed them with, (N, C) each, on the device of the pruner.
        estimator: a new one.
    """
    pruner = BatchPruner(0.5, criterion=dict(type='rare', estimator=estimator))
    pruner.to(features[0].device)
    for batch in itertools.cycle(features):
        if pruner.ready:
            return pruner
        pruner(batch)


def timed(call: Callable[[], Any], device: torch.device, seconds: float) -> tuple[float, float]:
    """Median and best time of a call in ms, over some seconds' worth of blocks of 20 calls.

    On the CPU it is the thread's own time, so that other processes count for little.
    """
    wait, clock = (
        (torch.cuda.synchronize, time.perf_counter)
        if device.type == 'cuda'
        else (lambda: None, time.thread_time)
    )
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        wait()
        start = clock()
        for _ in range(20):
            call()
        wait()
        times.append(clock() - start)
    return statistics.median(times) / 20 * 1e3, min(times) / 20 * 1e3


def allocated(call: Callable[[], Any]) -> float:
    """Bytes that a call allocates in all, an upper bound of what it holds at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profiled.events())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.decision', description=__doc__)
    parser.add_argument('--seconds', type=float, default=1.0, help='measured for each line')
    parser.add_argument('--no-growth', action='store_true', help='leave out doubled sizes')
    parser.add_argument('--out', type=Path, help='write everything to this JSON file')
    args = parser.parse_args(argv)
    if not args.seconds > 0:
        parser.error(f'--seconds {args.seconds:g}: expected a number > 0')
    found = print_all(args.seconds, growth=not args.no_growth)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
