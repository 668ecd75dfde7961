"""Full and blocked training steps of one model, in turns on the same batches."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mmcv
import mmengine
import mmseg
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ..blocking import scoring_mode
from ..convert.apply import apply_pfb
from ..models import HostCandidates, PartialForwardBlocking
from ..version import __version__
from .benchmark import Report, Result, Spread, count_syncs, ideal_saving, time_in_turns

FULL = 'full'
STATUS = Path('/proc/self/status')


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        ratios: shares that are pruned, in (0, 1).
        strategies: of ``'two_pass'`` and ``'single_pass'``.
        score_scale: relative sizes of the images in the scoring pass of ``'two_pass'``.
        steps: of each kind, that are measured.
        seconds: after which no more are, once there are three.
        warmup: steps of each kind before these.
        batch_size: images in a step; None: the config's.
        crop: height and width of synthetic images; None: the config's.
        real_data: batches of the config's train_dataloader, not synthetic ones.
        amp: mixed precision: None, ``'default'``, ``'float16'`` or ``'bfloat16'``.
        channels_last: whether the weights have this memory format.
        compile: backend of torch.compile; None: it is not used.
        device: ``'cpu'`` or ``'cuda'``; None: a GPU if there is one.
        no_memory: whether peak memory is left out.
    """

    ratios: Sequence[float]
    strategies: Sequence[str]
    score_scale: Sequence[float]
    steps: int
    seconds: float
    warmup: int
    batch_size: int | None
    crop: Sequence[int] | None
    real_data: bool
    amp: str | None
    channels_last: bool
    compile: str | None
    device: str | None
    no_memory: bool


@dataclass(frozen=True)
class Variant:
    """One kind of blocked step."""

    strategy: str
    prune_ratio: float
    score_scale: float

    @property
    def name(self) -> str:
        scale = f' x{self.score_scale:g}' if self.score_scale != 1 else ''
        return f'{self.strategy}{scale} p={self.prune_ratio:g}'


@dataclass(frozen=True)
class Job:
    """Everything that another process needs to set up the same benchmark."""

    cfg: Config
    variants: list[Variant]
    device: str
    amp: str | None
    batch_size: int
    crop: tuple[int, int] | None
    num_batches: int
    channels_last: bool = False
    compile: str | None = None


def prepare(cfg: Config, asked: Request) -> Job:
    """Turns a request into a job.

    Args:
        cfg: of any segmentor, with PFB or without; is changed.
        asked: what is to be measured.

    Raises:
        ValueError: something is outside its range or does not fit the config or the machine.
    """
    for name, value, low in (
        ('--steps', asked.steps, 1),
        ('--warmup', asked.warmup, 0),
        ('--batch-size', asked.batch_size, 1),
        *(('--crop', side, 1) for side in asked.crop or ()),
    ):
        if value is not None and value < low:
            raise ValueError(f'{name} {value}: expected an integer >= {low}')
    if not asked.seconds > 0:
        raise ValueError(f'--seconds {asked.seconds:g}: expected a number > 0')
    for ratio in asked.ratios:
        if not 0 < ratio < 1:
            raise ValueError(f'--ratios {ratio:g}: expected numbers in (0, 1)')
    if asked.real_data and asked.crop:
        raise ValueError(
            "--crop is for synthetic images; with --real-data the config's pipeline sets the size"
        )
    if 'two_pass' not in asked.strategies and asked.score_scale != [1.0]:
        raise ValueError('--score-scale is for two_pass, which --strategies leaves out')
    device = asked.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: no GPU was found; use --device cpu')
    if device == 'cpu' and asked.amp == 'float16':
        raise ValueError(
            '--amp float16: needs the loss scaling of a GPU; use --amp bfloat16 on the CPU'
        )
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    batch_size = asked.batch_size or cfg.train_dataloader.batch_size
    if asked.real_data:
        cfg.train_dataloader.batch_size = batch_size
    crop = None if asked.real_data else tuple(asked.crop or _crop_size(cfg))
    apply_pfb(cfg, asked.ratios[0])
    # Batches are made before the clock starts; a few are enough to keep the density estimate busy.
    num_batches = min(asked.steps, 8)
    variants = [
        Variant(strategy, ratio, scale)
        for strategy in dict.fromkeys(asked.strategies)
        for scale in dict.fromkeys(asked.score_scale if strategy == 'two_pass' else [1.0])
        for ratio in dict.fromkeys(asked.ratios)
    ]
    return Job(
        cfg,
        variants,
        device,
        asked.amp,
        batch_size,
        crop,
        num_batches,
        channels_last=asked.channels_last,
        compile=asked.compile,
    )


class Bench:
    """A model, its optimizer and batches, ready to step in any variant.

    Raises:
        TypeError, ValueError: the config's model cannot be blocked in one of the variants.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.notes: list[str] = []
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = job.cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
        self.model = self._build_model().to(job.device).train()
        if job.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optim_wrapper = build_optim_wrapper(self.model, self._optim_wrapper_cfg())
        if job.compile:
            self.model.forward = torch.compile(self.model.forward, backend=job.compile)
        self.blockings = {v: self._build_blocking(v) for v in job.variants}
        # Scores and decides alone, at full size: what is left of a step without the training.
        plain = replace(job.variants[0], strategy='two_pass', score_scale=1.0)
        self.reference = self._build_blocking(plain)
        self.batches = _real_batches(job) if job.crop is None else _synthetic_batches(job)
        self._seed_estimators()

    def step(self, variant: Variant | None, index: int) -> int:
        """One training step, full if ``variant`` is None. Returns how many images it kept."""
        model = self.model
        model.pfb = self.blockings[variant or self.job.variants[0]]
        model.pfb.pruning = variant is not None
        model.train_step(self._batch(index), self.optim_wrapper)
        selection = model.pfb.selection
        return self.job.batch_size if selection is None else len(selection.indices)

    def batch(self, index: int) -> dict:
        """``inputs`` (N, C, H, W), as the backbone takes them, and ``data_samples``."""
        return self.model.data_preprocessor(self._batch(index), True)

    def score(self, images: Tensor) -> Tensor:
        """The no-grad forward up to the blocking point, in the precision of training."""
        point = self.reference.point
        with self.optim_wrapper.optim_context(self.model), scoring_mode(point.encoder):
            return point.score(images)

    def features(self, images: Tensor) -> Tensor:
        """What the estimator is fed with, before any pooling where it is one map (N, C, H, W)."""
        maps = []
        point = self.reference.point
        handle = point.module.register_forward_hook(lambda module, args, out: maps.append(out))
        vectors = self.score(images)
        handle.remove()
        return maps[0] if isinstance(maps[0], Tensor) and maps[0].ndim == 4 else vectors

    def decide(self, batch: dict, blocking: PartialForwardBlocking | None = None) -> None:
        """Scores the images and chooses among them; trains nothing but what chooses."""
        blocking = blocking or self.reference
        candidates = HostCandidates(self.model, blocking, batch['inputs'], batch['data_samples'])
        with self.optim_wrapper.optim_context(self.model), blocking.decide(candidates):
            pass

    def _build_model(self) -> nn.Module:
        cfg = self.job.cfg
        if self.job.crop is not None and 'data_preprocessor' in cfg.model:
            # Else it would pad synthetic images to the size of the config's own.
            cfg.model.data_preprocessor.size = self.job.crop
        model = MODELS.build(cfg.model)
        synced = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
        if synced:
            model = revert_sync_batchnorm(model)
            self.notes.append(
                f'{len(synced)} SyncBN layers run as BN: this is one process without a group.'
            )
        return model

    def _build_blocking(self, variant: Variant) -> PartialForwardBlocking:
        options = {**self.job.cfg.model.pfb, 'prune_ratio': variant.prune_ratio}
        if variant.strategy == 'single_pass':
            for name in ('score_scale', 'score_statistics', 'score_dtype'):
                options.pop(name, None)
        else:
            options['score_scale'] = variant.score_scale
        blocking = PartialForwardBlocking(self.model, **{**options, 'strategy': variant.strategy})
        quota = blocking.pruner.quota
        if quota.mean(self.job.batch_size) == self.job.batch_size:
            raise ValueError(
                f'nothing can be pruned at p={variant.prune_ratio:g}: at least {quota.min_keep} of '
                f'{self.job.batch_size} images are kept; raise --batch-size'
            )
        blocking.to(self.job.device).prepare()
        return blocking

    def _optim_wrapper_cfg(self) -> dict:
        cfg = self.job.cfg.optim_wrapper.copy()
        amp_in_config = cfg.get('type') == 'AmpOptimWrapper'
        if self.job.amp is None and not amp_in_config:
            return cfg
        if cfg.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(f'--amp: optim_wrapper.type={cfg.type!r} has no counterpart for it')
        if self.job.device == 'cpu':
            for name in ('dtype', 'loss_scale', 'use_fsdp'):
                cfg.pop(name, None)
            return {**cfg, 'type': CpuAmpOptimWrapper}
        cfg.type = 'AmpOptimWrapper'
        if self.job.amp in ('float16', 'bfloat16'):
            cfg.dtype = self.job.amp
        return cfg

    def _seed_estimators(self) -> None:
        vectors = [self.score(self.batch(i)['inputs']) for i in range(len(self.batches))]
        for blocking in (self.reference, *self.blockings.values()):
            rounds = 0
            while not blocking.pruner.ready:
                if blocking.exit is None:
                    blocking.pruner(vectors[rounds % len(vectors)])
                else:
                    self.decide(self.batch(rounds), blocking)
                rounds += 1

    def _batch(self, index: int) -> dict:
        return self.batches[index % len(self.batches)]


class CpuAmpOptimWrapper(OptimWrapper):
    """MMEngine's AmpOptimWrapper asks for a GPU; bfloat16 needs neither one nor loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def run(bench: Bench, asked: Request, console: Console) -> Report:
    """Measures time, then what makes the host wait, then memory."""
    job = bench.job
    kinds = {FULL: None, **{variant.name: variant for variant in job.variants}}
    kept: dict[str, list[int]] = {name: [] for name in kinds}
    batch = bench.batch(0)
    images = batch['inputs']
    features = bench.features(images)
    criterion = bench.reference.pruner.criterion
    by_features = bench.reference.exit is None and criterion.scoring_pass != 'whole'

    def step(name: str):
        return lambda index: kept[name].append(bench.step(kinds[name], index))

    workloads = {name: step(name) for name in kinds}
    workloads['shallow'] = lambda index: bench.score(images)
    if by_features:
        workloads['estimator'] = lambda index: bench.reference.pruner(features)
    else:  # what decides reads the scoring pass itself: it is timed with it
        workloads['scoring and decision'] = lambda index: bench.decide(batch)
    synchronize = torch.cuda.synchronize if job.device == 'cuda' else lambda: None
    with Progress(console=console) as progress:
        calls = (asked.steps + asked.warmup) * len(workloads)
        timing = progress.add_task('timing', total=calls)
        seconds = time_in_turns(
            workloads,
            asked.steps,
            asked.warmup,
            synchronize,
            lambda: progress.advance(timing),
            asked.seconds,
        )
        syncs = dict.fromkeys(kinds)
        if job.device == 'cuda':
            for name, variant in kinds.items():
                syncs[name] = count_syncs(lambda: bench.step(variant, 1))  # noqa: B023  called here
        memory = dict.fromkeys(kinds)
        if not asked.no_memory:
            task = progress.add_task('memory', total=len(kinds))
            for name, variant in kinds.items():
                memory[name] = peak_memory(bench, variant)
                progress.advance(task)
    full = statistics.median(seconds[FULL])
    shallow_share = statistics.median(seconds['shallow']) / full
    results = []
    for name in kinds:
        step_time = Spread.of(seconds[name])
        kept_share = statistics.median(kept[name][asked.warmup :]) / job.batch_size
        results.append(
            Result(
                name=name,
                step=step_time,
                kept_share=kept_share,
                saved=1 - step_time.median / full,
                ideal=ideal_saving(1 - kept_share, shallow_share),
                peak_memory=memory[name],
                syncs=syncs[name],
            )
        )
    if by_features:
        estimator_share = statistics.median(seconds['estimator']) / full
    else:
        estimator_share = statistics.median(seconds['scoring and decision']) / full - shallow_share
    setting = _setting(bench, asked, len(seconds[FULL]))
    return Report(setting, results, shallow_share, estimator_share, seconds)


def peak_memory(bench: Bench, variant: Variant | None) -> int | None:
    """Bytes that a step takes at its peak on top of the model and the optimizer's state.

    On a GPU what the allocator handed out. On the CPU growth of the resident set, in a new process
    with nothing else in it; None where the system does not tell.
    """
    if bench.job.device == 'cpu':
        if not STATUS.exists():
            return None
        # A block of its own for every tensor, given back when the tensor is: the resident set
        # then is what lives, without what the allocator keeps for later.
        variables = {'MALLOC_MMAP_THRESHOLD_': '65536', 'PYTHONWARNINGS': 'ignore'}
        spawn = multiprocessing.get_context('spawn')
        try:
            with environment(variables), ProcessPoolExecutor(1, mp_context=spawn) as pool:
                return pool.submit(resident_growth, bench.job, variant).result()
        except BrokenProcessPool:  # killed for want of memory, most likely
            name = variant.name if variant else FULL
            bench.notes.append(f'No peak memory of {name}: the process that measured it died.')
            return None
    bench.step(variant, 0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    bench.step(variant, 1)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables for processes that are started inside, and puts back what was there."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def resident_growth(job: Job, variant: Variant | None) -> int:
    """Peak of the resident set in a training step, less what stays between steps. Bytes."""
    init_default_scope(job.cfg.get('default_scope', 'mmseg'))
    bench = Bench(job)
    bench.step(variant, 0)  # the optimizer makes its state in the first step
    gc.collect()
    before = _status('VmRSS')
    bench.step(variant, 1)
    return _status('VmHWM') - before


def _status(field: str) -> int:
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f'{field}:')]
    return int(line.split()[1]) * 1024


def _crop_size(cfg: Config) -> tuple[int, int]:
    size = cfg.get('crop_size') or cfg.model.get('data_preprocessor', {}).get('size')
    if size is None:
        raise ValueError('the config has no crop_size; give the size of the images with --crop H W')
    return size


def _synthetic_batches(job: Job) -> list[dict]:
    height, width = job.crop
    num_classes = job.cfg.model.decode_head
    num_classes = (num_classes[-1] if isinstance(num_classes, list) else num_classes).num_classes
    batches = []
    for _ in range(job.num_batches):
        samples = []
        for _ in range(job.batch_size):
            sample = SegDataSample(metainfo=dict(img_shape=(height, width)))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, num_classes, (1, height, width)))
            samples.append(sample)
        images = torch.randint(0, 256, (job.batch_size, 3, height, width), dtype=torch.uint8)
        batches.append(dict(inputs=list(images), data_samples=samples))
    return batches


def _real_batches(job: Job) -> list[dict]:
    loader = iter(Runner.build_dataloader(job.cfg.train_dataloader, seed=0))
    return [next(loader) for _ in range(job.num_batches)]


def _setting(bench: Bench, asked: Request, steps: int) -> dict[str, object]:
    job = bench.job
    if job.device == 'cuda':
        device = torch.cuda.get_device_name()
    else:
        device = f'{_cpu_name()}, {torch.get_num_threads()} threads'
    size = 'real batches' if job.crop is None else f'{job.crop[0]}x{job.crop[1]}'
    return {
        'config': job.cfg.filename,
        'batch': f'{job.batch_size} images, {size}',
        'precision': ', '.join(
            ['float32' if job.amp is None else f'mixed ({job.amp})']
            + ['channels_last'] * job.channels_last
            + [f'torch.compile ({job.compile})'] * (job.compile is not None)
        ),
        'device': device,
        'versions': f'pfb_mmseg {__version__}, torch {torch.__version__}, '
        f'mmengine {mmengine.__version__}, mmcv {mmcv.__version__}, mmseg {mmseg.__version__}, '
        f'Python {platform.python_version()}',
        'steps': f'{steps} of each kind in turns, after {asked.warmup}',
        'command': shlex.join(['python', *sys.argv]),
        'notes': ' '.join(bench.notes) or 'none',
    }


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
