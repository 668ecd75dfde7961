"""Time and peak memory of full and blocked training steps of one model, in turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Column, Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..blocking.devices import forget_peak_memory, peak_memory
from ..convert.apply import apply_pfb, type_name
from ..models.pfb import PartialForwardBlocking
from ..models.segmentation.heads import last_head
from .methods import criterion_of

FULL = 'full'
# Blocked steps, and the options of PFB that make them: the paper's, and with the exit's teaching.
KINDS = {
    'two_pass': dict(strategy='two_pass', exit_loss_weight=0.0),
    'taught': dict(strategy=None, exit_loss_weight=1.0),
}
_NUM_BATCHES, _WARMUP = 4, 3


@dataclass(frozen=True)
class Result:
    """What one kind of step costs.

    Attributes:
        name: ``'full'``, or kind and ratio.
        strategy: that runs; None for the full step.
        kept_share: images that stay / images in the batch.
        median: seconds of a step.
        saved: share of the full step's median.
        peak_memory: bytes on top of what is there between steps, see :meth:`Bench.peak_memory`.
    """

    name: str
    strategy: str | None
    kept_share: float
    median: float
    saved: float
    peak_memory: int


class Bench:
    """A model, its optimizer and random batches, ready for steps of each kind.

    Args:
        cfg: of a segmentor, with PFB or without; is changed. The criterion is its own, else
            ``'hard'``.
        ratios: shares that are pruned, in (0, 1).
        device: ``'cpu'`` or ``'cuda'``.
        batch_size: images in a step; None: the config's.
        crop: height and width of the images; None: the config's.

    Attributes:
        blockings: PFB of each kind of step by its name, all of the same model; None: a full step.

    Raises:
        TypeError, ValueError: something is outside its range or does not fit the machine, or the
            model is no segmentor or cannot be blocked in one of the ways.
    """

    def __init__(
        self,
        cfg: Config,
        ratios: Sequence[float],
        device: str,
        batch_size: int | None = None,
        crop: Sequence[int] | None = None,
    ) -> None:
        if 'decode_head' not in cfg.model:
            raise ValueError(
                f'model.type={type_name(cfg.model.type)!r} has no decode_head: only segmentors are '
                'measured here; measure whole runs of another model with pfb compare'
            )
        if device == 'cuda' and not torch.cuda.is_available():
            raise ValueError('--device cuda: no GPU was found; use --device cpu')
        if device == 'cpu' and cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
            raise ValueError('optim_wrapper.type=AmpOptimWrapper: mixed precision needs a GPU')
        crop = crop or cfg.get('crop_size') or cfg.model.get('data_preprocessor', {}).get('size')
        if crop is None:
            raise ValueError(
                'the config has no crop_size; give the size of the images with --crop H W'
            )
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
        if device == 'cpu':  # threads that wait for each other would count, too
            torch.set_num_threads(1)
        self.cfg, self.device = cfg, torch.device(device)
        self.batch_size = batch_size or cfg.train_dataloader.batch_size
        self.model = self._build_model(crop, ratios[0]).to(device).train()
        if modules := cfg.get('activation_checkpointing'):
            turn_on_activation_checkpointing(self.model, modules)
        self.blockings: dict[str, PartialForwardBlocking | None] = {FULL: None}
        for kind, options in KINDS.items():
            for ratio in ratios:
                self.blockings[f'{kind} p={ratio:g}'] = self._blocking(ratio, options)
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        if options := cfg.get('compile'):
            options = {} if options is True else options
            self.model.forward = torch.compile(self.model.forward, **options)
        self.batches = [self._batch(*crop) for _ in range(_NUM_BATCHES)]

    def step(self, name: str, index: int) -> int:
        """One training step. Returns how many images it kept."""
        pfb = self._begin(name)
        self.model.train_step(self.batches[index % _NUM_BATCHES], self.optim_wrapper)
        return len(pfb.selection.indices) if pfb.selection else self.batch_size

    def _begin(self, name: str) -> PartialForwardBlocking:
        """Make the next step one of this kind."""
        blocking = self.blockings[name]
        self.model.pfb = pfb = blocking or [*self.blockings.values()][-1]
        pfb.start_iteration(blocked=blocking is not None)
        return pfb

    def warm_up(self, name: str) -> None:
        """Steps that are not measured, until the criterion is ready."""
        blocking, done = self.blockings[name], 0
        while done < _WARMUP or (blocking is not None and not blocking.ready):
            self.step(name, done)
            done += 1

    def now(self) -> float:
        """Seconds: the wall clock when a GPU has done its work, or the CPU's of this process."""
        if self.device.type == 'cpu':
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def peak_memory(self, name: str) -> int:
        """Bytes that a step takes on top of the model and the optimizer's state: on a GPU the peak,
        elsewhere what the forward pass keeps for the backward pass, which makes most of it."""
        if self.device.type == 'cpu':
            return self._kept_for_backward(name)
        torch.cuda.synchronize()
        forget_peak_memory(self.device)
        before = torch.cuda.memory_allocated()
        self.step(name, 0)
        torch.cuda.synchronize()
        return peak_memory(self.device) - before

    def _kept_for_backward(self, name: str) -> int:
        kept: dict[int, int] = {}  # bytes by address: the same values are often kept twice
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}

        def see(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        self._begin(name)
        batch = self.model.data_preprocessor(self.batches[0], training=True)
        with saved_tensors_hooks(see, lambda tensor: tensor):
            self.model(**batch, mode='loss')
        return sum(kept.values())

    def _build_model(self, crop: Sequence[int], ratio: float) -> nn.Module:
        cfg = self.cfg
        apply_pfb(cfg, ratio)
        criterion = criterion_of(cfg)
        if criterion['type'] == 'rare':  # one batch is enough to seed the estimate
            estimator = criterion.get('estimator', {})
            criterion['estimator'] = {**estimator, 'num_centroids': self.batch_size}
        cfg.model.pfb.criterion = criterion
        if 'data_preprocessor' in cfg.model:  # else it would pad the images to the config's size
            cfg.model.data_preprocessor.size = tuple(crop)
        # This is one process without a group.
        return revert_sync_batchnorm(MODELS.build(cfg.model))

    def _blocking(self, ratio: float, options: dict) -> PartialForwardBlocking:
        pfb = {**self.cfg.model.pfb, **options, 'prune_ratio': ratio}
        blocking = PartialForwardBlocking(self.model, **pfb).to(self.device)
        blocking.prepare()
        if blocking.quota.mean(self.batch_size) == self.batch_size:
            raise ValueError(
                f'nothing can be pruned at p={ratio:g}: at least {blocking.quota.min_keep} of '
                f'{self.batch_size} images are kept; raise --batch-size'
            )
        return blocking

    def _batch(self, height: int, width: int) -> dict:
        """Random images and labels, as a data loader hands them out."""
        num_classes = last_head(self.model).num_classes
        labels = torch.randint(0, num_classes, (self.batch_size, 1, height, width))
        images = torch.randint(0, 256, (self.batch_size, 3, height, width), dtype=torch.uint8)
        samples = [
            SegDataSample(metainfo=dict(img_shape=(height, width)), gt_sem_seg=PixelData(data=one))
            for one in labels
        ]
        return dict(inputs=list(images), data_samples=samples)


def measure(bench: Bench, steps: int, progress: Progress) -> list[Result]:
    """Time ``steps`` steps of each kind in turns, so that a slow spell of the machine meets them
    alike, then measure memory. Time is the wall clock on a GPU, and CPU seconds elsewhere.
    """
    order = list(bench.blockings)
    task = progress.add_task('steps', total=len(order) * (steps + 1))
    for name in order:
        bench.warm_up(name)
        progress.advance(task)
    kept: dict[str, list[int]] = {name: [] for name in order}
    seconds: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(0).shuffle
    for index in range(steps):
        shuffle(order)
        for name in order:
            called = bench.now()
            kept[name].append(bench.step(name, index))
            seconds[name].append(bench.now() - called)
            progress.advance(task)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        Result(
            name,
            None if blocking is None else blocking.strategy,
            statistics.fmean(kept[name]) / bench.batch_size,
            medians[name],
            1 - medians[name] / medians[FULL],
            bench.peak_memory(name),
        )
        for name, blocking in bench.blockings.items()
    ]


def table(results: list[Result]) -> Table:
    """A line for each kind of step."""
    names = (Column(heading, no_wrap=True) for heading in ('step', 'strategy'))
    shown = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
    for heading in ('kept', 'median [s]', 'saved', 'memory [MiB]', 'of full'):
        shown.add_column(heading, justify='right')
    full = results[0].peak_memory
    for result in results:
        shown.add_row(
            result.name,
            result.strategy or '-',
            f'{result.kept_share:.0%}',
            f'{result.median:.3f}',
            f'{result.saved:.1%}' if result.strategy else '-',
            f'{result.peak_memory / 2**20:,.0f}',
            f'{result.peak_memory / full:.0%}',
        )
    return shown
