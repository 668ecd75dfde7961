"""Time and peak memory of full and blocked training steps of one model, in turns."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import platform
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table
from torch import nn

from ..convert.apply import apply_pfb
from ..models.pfb import PartialForwardBlocking
from ..report.versions import this_code

FULL = 'full'
# Blocked steps, and the options of PFB that make them: the paper's, and those in which the early
# exit teaches the shallow part on all images.
KINDS = {
    'two_pass': dict(strategy='two_pass', exit_loss_weight=0.0),
    'taught': dict(strategy=None, exit_loss_weight=1.0),
}
_STATUS = Path('/proc/self/status')
_FEWEST_ROUNDS, _NUM_BATCHES = 3, 4


@dataclass(frozen=True)
class Job:
    """What is measured, so that another process can set up the same.

    Attributes:
        cfg: of a segmentor with PFB.
        ratios: shares that are pruned, in (0, 1).
        device: ``'cpu'`` or ``'cuda'``.
        batch_size: images in a step.
        crop: height and width of the synthetic images.
        amp: whether in mixed precision: float16 on a GPU, bfloat16 on the CPU.
        channels_last: whether the weights have this memory format.
        compile: backend of torch.compile; None: it is not used.
    """

    cfg: Config
    ratios: tuple[float, ...]
    device: str
    batch_size: int
    crop: tuple[int, int]
    amp: bool = False
    channels_last: bool = False
    compile: str | None = None


@dataclass(frozen=True)
class Result:
    """One kind of step.

    Attributes:
        name: ``'full'``, or kind and ratio.
        strategy: that runs; None for the full step.
        kept_share: images that stay / images in the batch.
        seconds: of each measured step.
        saved: share of the full step's median time.
        peak_memory: bytes on top of the model and its optimizer; None where it was not measured.
    """

    name: str
    strategy: str | None
    kept_share: float
    seconds: list[float]
    saved: float
    peak_memory: int | None


def make_job(
    cfg: Config,
    ratios: tuple[float, ...],
    device: str,
    batch_size: int | None = None,
    crop: tuple[int, int] | None = None,
    **options: object,
) -> Job:
    """A job of a config with PFB or without, whose criterion is the config's, else ``'hard'``.

    Raises:
        ValueError: something is outside its range or does not fit the config or the machine.
    """
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise ValueError(f'--ratios {ratio:g}: expected numbers in (0, 1)')
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: no GPU was found; use --device cpu')
    size = crop or cfg.get('crop_size') or cfg.model.get('data_preprocessor', {}).get('size')
    if size is None:
        raise ValueError('the config has no crop_size; give the size of the images with --crop H W')
    apply_pfb(cfg, ratios[0])
    batch_size = batch_size or cfg.train_dataloader.batch_size
    criterion = cfg.model.pfb.get('criterion', 'hard')
    criterion = dict(criterion) if isinstance(criterion, dict) else dict(type=criterion)
    if criterion['type'] == 'rare':  # one batch is enough to seed the estimate
        criterion['estimator'] = {**criterion.get('estimator', {}), 'num_centroids': batch_size}
    cfg.model.pfb.criterion = criterion
    if 'data_preprocessor' in cfg.model:  # else it would pad the images to the config's size
        cfg.model.data_preprocessor.size = tuple(size)
    return Job(cfg, tuple(dict.fromkeys(ratios)), device, batch_size, tuple(size), **options)


class Bench:
    """A model, its optimizer and batches, ready for steps of each kind.

    Attributes:
        blockings: PFB of each kind of step by its name, all of the same model; None: a full step.

    Raises:
        TypeError, ValueError: the config's model cannot be blocked in one of the ways.
    """

    def __init__(self, job: Job) -> None:
        init_default_scope(job.cfg.get('default_scope', 'mmseg'))
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = job.cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
        self.job = job
        model = MODELS.build(job.cfg.model)
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            model = revert_sync_batchnorm(model)  # this is one process without a group
        self.model = model.to(job.device).train()
        if job.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.blockings: dict[str, PartialForwardBlocking | None] = {FULL: None}
        for kind, options in KINDS.items():
            for ratio in job.ratios:
                self.blockings[f'{kind} p={ratio:g}'] = self._blocking(ratio, options)
        self.optim_wrapper = self._optim_wrapper()
        if job.compile:
            self.model.forward = torch.compile(self.model.forward, backend=job.compile)
        self.batches = [self._batch() for _ in range(_NUM_BATCHES)]

    def step(self, name: str, index: int) -> int:
        """One training step. Returns how many images it kept."""
        blocking = self.blockings[name]
        pfb = blocking or next(one for one in self.blockings.values() if one is not None)
        self.model.pfb = pfb
        pfb.start_iteration(blocked=blocking is not None)
        self.model.train_step(self.batches[index % _NUM_BATCHES], self.optim_wrapper)
        return len(pfb.selection.indices) if pfb.selection else self.job.batch_size

    def warm_up(self, name: str, steps: int) -> None:
        """Steps that are not measured; more than asked for where the criterion is not ready yet."""
        blocking = self.blockings[name]
        done = 0
        while done < steps or not (blocking is None or blocking.ready):
            self.step(name, done)
            done += 1

    def _blocking(self, ratio: float, options: dict) -> PartialForwardBlocking:
        pfb = {**self.job.cfg.model.pfb, **options, 'prune_ratio': ratio}
        blocking = PartialForwardBlocking(self.model, **pfb).to(self.job.device)
        blocking.prepare()
        if blocking.quota.mean(self.job.batch_size) == self.job.batch_size:
            raise ValueError(
                f'nothing can be pruned at p={ratio:g}: at least {blocking.quota.min_keep} of '
                f'{self.job.batch_size} images are kept; raise --batch-size'
            )
        return blocking

    def _optim_wrapper(self) -> OptimWrapper:
        cfg = self.job.cfg.optim_wrapper.copy()
        if self.job.amp or cfg.get('type') == 'AmpOptimWrapper':
            cfg.type = 'AmpOptimWrapper'
            if self.job.device == 'cpu':
                cfg.type = CpuAmpOptimWrapper
                for name in ('dtype', 'loss_scale', 'use_fsdp'):
                    cfg.pop(name, None)
        return build_optim_wrapper(self.model, cfg)

    def _batch(self) -> dict:
        """Random images and labels, as a data loader hands them out."""
        height, width = self.job.crop
        head = self.job.cfg.model.decode_head
        num_classes = (head[-1] if isinstance(head, list) else head).num_classes
        samples = []
        for _ in range(self.job.batch_size):
            sample = SegDataSample(metainfo=dict(img_shape=(height, width)))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, num_classes, (1, height, width)))
            samples.append(sample)
        images = torch.randint(0, 256, (self.job.batch_size, 3, height, width), dtype=torch.uint8)
        return dict(inputs=list(images), data_samples=samples)


class CpuAmpOptimWrapper(OptimWrapper):
    """MMEngine's AmpOptimWrapper asks for a GPU; bfloat16 needs neither one nor loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def measure(
    bench: Bench, steps: int, warmup: int, limit: float, memory: bool, progress: Progress
) -> list[Result]:
    """Time all kinds of steps in turns, so that a slow spell of the machine meets them alike, then
    measure memory.

    Args:
        bench: what to step.
        steps: of each kind that are timed.
        warmup: steps of each kind before these.
        limit: seconds after which no other round is begun, once three are timed.
        memory: whether peak memory is measured.
        progress: shows how far it is.
    """
    names = list(bench.blockings)
    task = progress.add_task('steps', total=len(names) * (steps + 1 + memory))
    for name in names:
        bench.warm_up(name, warmup)
        progress.advance(task)
    kept: dict[str, list[int]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order, shuffle, started = [*names], random.Random(0).shuffle, time.perf_counter()
    synchronize = torch.cuda.synchronize if bench.job.device == 'cuda' else lambda: None
    for index in range(steps):
        if index >= _FEWEST_ROUNDS and time.perf_counter() - started > limit:
            break
        shuffle(order)
        for name in order:
            synchronize()
            called = time.perf_counter()
            kept[name].append(bench.step(name, index))
            synchronize()
            seconds[name].append(time.perf_counter() - called)
            progress.advance(task)
    peaks = dict.fromkeys(names)
    for name in names if memory else []:
        peaks[name] = peak_memory(bench, name)
        progress.advance(task)
    full = statistics.median(seconds[FULL])
    return [
        Result(
            name,
            None if blocking is None else blocking.strategy,
            statistics.fmean(kept[name]) / bench.job.batch_size,
            seconds[name],
            1 - statistics.median(seconds[name]) / full,
            peaks[name],
        )
        for name, blocking in bench.blockings.items()
    ]


def peak_memory(bench: Bench, name: str) -> int | None:
    """Bytes that a step takes at its peak on top of the model and the optimizer's state.

    On a GPU what the allocator handed out. On the CPU growth of the resident set, in a new process
    with nothing else in it. None where the system does not tell, or where the process was killed,
    most likely for want of memory.
    """
    if bench.job.device == 'cpu':
        if not _STATUS.exists():
            return None
        spawn = multiprocessing.get_context('spawn')
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            try:
                return pool.submit(_resident_growth, bench.job, name).result()
            except BrokenProcessPool:
                return None
    bench.step(name, 0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    bench.step(name, 1)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def table(results: list[Result]) -> Table:
    """A line for each kind of step."""
    shown = Table(
        box=SIMPLE_HEAD, pad_edge=False, caption='spread: between the quartiles; saved: of time'
    )
    shown.add_column('step', no_wrap=True)
    shown.add_column('strategy')
    for heading in ('kept', 'median [s]', 'spread [s]', 'saved', 'peak [GiB]', 'of full'):
        shown.add_column(heading, justify='right')
    full = results[0].peak_memory
    for result in results:
        seconds, memory = result.seconds * 2, result.peak_memory  # a single one has no quartiles
        lower, median, upper = statistics.quantiles(seconds, n=4, method='inclusive')
        shown.add_row(
            result.name,
            result.strategy or '-',
            f'{result.kept_share:.0%}',
            f'{median:.3f}',
            f'{upper - lower:.3f}',
            f'{result.saved:.1%}' if result.strategy else '-',
            '-' if memory is None else f'{memory / 2**30:.2f}',
            f'{memory / full:.0%}' if memory and full else '-',
        )
    return shown


def setting(bench: Bench) -> dict[str, str]:
    """What was measured, and on what."""
    job = bench.job
    threads = f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'
    return {
        'config': str(job.cfg.filename),
        'criterion': job.cfg.model.pfb.criterion['type'],
        'batch': f'{job.batch_size} images, {job.crop[0]}x{job.crop[1]}',
        'precision': 'mixed' if job.amp else 'float32',
        'device': torch.cuda.get_device_name() if job.device == 'cuda' else threads,
        'versions': f'{this_code()["version"]}, torch {torch.__version__}',
    }


def _resident_growth(job: Job, name: str) -> int:
    """Peak of the resident set in a training step, less what stays between steps. Bytes."""
    # A block of its own for every tensor, given back when the tensor is: the resident set then is
    # what lives, without what the allocator keeps for later. Not every libc has it.
    if mallopt := getattr(ctypes.CDLL(None), 'mallopt', None):
        mallopt(ctypes.c_int(-3), ctypes.c_int(65536))  # M_MMAP_THRESHOLD
    bench = Bench(job)
    bench.warm_up(name, 1)  # the optimizer makes its state in the first step
    gc.collect()
    before = _status('VmRSS')
    bench.step(name, 1)
    return _status('VmHWM') - before


def _status(field: str) -> int:
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(f'{field}:')]
    return int(line.split()[1]) * 1024
