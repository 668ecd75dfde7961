"""InfoBatch (Qin et al., ICLR 2024), which chooses what an epoch loads and weights the losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather, get_dist_info, get_rank, get_world_size, sync_random_seed
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor
from torch.utils.data import Sampler

from ..core.checks import check_integer, check_number
from ..core.draws import generator_of
from ..hooks.model import unwrapped
from .image_weights import ImageWeights

# Share of a run in which samples are left out, as published.
DELTA = 0.875
# Columns of the stream; the last is how many candidates a sample was chosen from. Float64 holds the
# index of any sample exactly.
_INDEX, _WEIGHT, _STAND_FOR = range(3)


@DATA_SAMPLERS.register_module()
class InfoBatchSampler(Sampler):
    """Takes InfiniteSampler's place, and leaves out samples whose last loss was low.

    Of the samples whose loss is below the threshold a share of ``prune_ratio`` is left out at
    random, and the others of them count 1 / (1 - prune_ratio) times, so that the expected sum of
    the weighted gradients is that of all samples (Eq. 3 and Sec. 3.2). A sample never seen stays.
    The first epoch is never pruned, nor is an epoch that begins after 87.5 % of the run.

    An epoch is one pass over what is left of the data set; the next follows without a gap. All
    processes hold the same losses and the same stream of samples, of which each hands its share to
    its loader. A loader with workers asks ahead: an epoch is drawn as many batches early, from the
    losses known by then. InfoBatchHook drives it; without the hook no loss is ever known.

    Args:
        dataset: anything with a length.
        prune_ratio: r, in [0, 1), share of the samples below the threshold that is left out.
        percentile: the threshold; None is the mean of the losses (InfoBatch*), 95 makes nearly all
            samples candidates, so that r is the actual pruning ratio (InfoBatch†).
        seed: the draws of an epoch are a function of (seed, epoch) and the losses; None: one for
            all processes at random.

    Attributes:
        size (int): samples of the data set.
        num_epochs (float): passes over the data set that the run replaces; infinite until the hook
            says how many.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        dataset: Sized,
        prune_ratio: float = 0.5,
        percentile: float | None = None,
        seed: int | None = None,
    ) -> None:
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
        if percentile is not None:
            check_number('percentile', percentile, 0, 100)
        if seed is not None:
            check_integer('seed', seed, low=0)
        self.prune_ratio = prune_ratio
        self.percentile = percentile
        self.seed = sync_random_seed() if seed is None else seed
        self.size = len(dataset)
        self.num_epochs = float('inf')
        self._losses = torch.full((self.size,), float('nan'))
        self._news: list[tuple[Tensor, Tensor]] = []
        self._rank, self._world_size = get_dist_info()
        self._num_drawn = 0  # epochs
        # What is still to be trained on, by all processes in turns.
        self._stream = torch.zeros(0, 3, dtype=torch.float64)
        self._handed_out = 0  # of this process's share, those that its loader has already

    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Choose the samples of an epoch, counted from 0; all processes call it by themselves.

        Returns:
            (K,) indices in the order of training, K >= 1, and (K,) float64 weights of their losses.
        """
        ratio = self.prune_ratio if epoch < DELTA * self.num_epochs else 0.0
        losses, percentile = self.losses.double(), self.percentile
        # NaN, below which there is none, while no loss is known.
        threshold = losses.nanmean() if percentile is None else losses.nanquantile(percentile / 100)
        candidates = (losses < threshold).nonzero().flatten()
        # Rounded up or down at random: the expectation is exact, for few samples too.
        rounding = torch.rand((), generator=generator, dtype=torch.float64)
        num_dropped = int(ratio * len(candidates) + rounding)
        weights = torch.ones(self.size, dtype=torch.float64)
        weights[candidates] = 1 / (1 - ratio)
        weights[_shuffled(candidates, generator)[:num_dropped]] = 0
        indices = _shuffled(weights.nonzero().flatten(), generator)
        return indices, weights[indices]

    @property
    def losses(self) -> Tensor:
        """(size,) float32 on the CPU, last loss of each sample; NaN: never seen, or not finite."""
        values = self._losses.numpy()
        for indices, losses in self._news:
            seen = losses.float().cpu().numpy()
            # Of an index that is there twice NumPy takes the last value.
            values[indices.numpy()] = np.where(np.isfinite(seen), seen, np.nan)
        self._news.clear()
        return self._losses

    @property
    def candidates(self) -> float:
        """Samples that those trained on so far were chosen from, over all processes."""
        return self._num_drawn * self.size - float(self._stream[:, _STAND_FOR].sum())

    def __iter__(self) -> Iterator[int]:
        self._handed_out = 0
        while True:
            self._handed_out += 1
            self._draw_until(self._handed_out)
            row = (self._handed_out - 1) * self._world_size + self._rank
            yield int(self._stream[row, _INDEX])

    def __len__(self) -> int:
        return self.size

    def take(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Name the samples of the next iteration, ``num_samples`` of each process, and forget them.

        Returns:
            (num_samples, world_size) int64 indices, a column for each process, and float32 weights
            of their losses.
        """
        self._draw_until(num_samples)
        rows = num_samples * self._world_size
        taken, self._stream = self._stream[:rows], self._stream[rows:]
        self._handed_out = max(0, self._handed_out - num_samples)
        taken = taken.view(num_samples, self._world_size, -1)
        return taken[..., _INDEX].long(), taken[..., _WEIGHT].float()

    def update(self, indices: Tensor, losses: Tensor) -> None:
        """Note losses (M,) of the samples at indices (M,) on the CPU, the same on every process.

        Of a sample that is there twice the last counts; a loss that is not finite is none. Losses
        stay on their device until an epoch is drawn: a step waits for nothing.
        """
        self._news.append((indices, losses))

    def _draw_until(self, num_samples: int) -> None:
        """Extend the stream to this many samples per process, for all processes at once: they
        must draw an epoch at the same moment, from the same losses."""
        while len(self._stream) < num_samples * self._world_size:
            indices, weights = self.draw(self._num_drawn, generator_of(self.seed, self._num_drawn))
            self._num_drawn += 1
            stand_for = torch.full_like(weights, self.size / len(indices))
            epoch = torch.stack([indices.double(), weights, stand_for], dim=1)
            self._stream = torch.cat([self._stream, epoch])


@HOOKS.register_module()
class InfoBatchHook(Hook):
    """Gives InfoBatchSampler the loss of each image that was trained on, gathered over all
    processes, and the model the weights by which the losses of the sampler's images count.

    The model is any segmentor of MMSegmentation or classifier of MMPretrain whose head has losses
    of single images. A run cannot be resumed: the losses are in no checkpoint.

    Args:
        full_iters: iterations of the run on full data that this one replaces. An epoch that is
            pruned takes fewer iterations, so ``max_iters`` and the learning-rate schedule have to
            be shortened, see :func:`shortened_iters`; the sampler counts the epochs of the long
            run.

    Raises:
        TypeError, ValueError: the argument is outside its range; or, before the first iteration,
            the sampler is another, the loop counts epochs, the run is resumed, or the losses
            cannot be weighted.
    """

    priority = 'NORMAL'

    def __init__(self, full_iters: int) -> None:
        check_integer('full_iters', full_iters, low=1)
        self.full_iters = full_iters

    def before_train(self, runner) -> None:
        """Refuse what cannot work; tell the sampler how long its schedule is."""
        loader = runner.train_dataloader
        self._sampler = loader.sampler
        if not isinstance(self._sampler, InfoBatchSampler):
            raise ValueError(
                f'InfoBatchHook drives InfoBatchSampler, got {type(self._sampler).__name__}; set '
                "train_dataloader.sampler.type='InfoBatchSampler', or remove the hook"
            )
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                'InfoBatchSampler is for IterBasedTrainLoop, got '
                f'{type(runner.train_loop).__name__}; give the length of the run as max_iters'
            )
        if runner.iter:
            raise ValueError(
                f'InfoBatch cannot be resumed at iteration {runner.iter}: the losses that it '
                'chooses by are in no checkpoint; train from the beginning, with resume=False'
            )
        self._weights = ImageWeights(unwrapped(runner.model))
        epochs = self.full_iters * loader.batch_size * get_world_size() / self._sampler.size
        self._sampler.num_epochs = epochs
        print_log(
            f'InfoBatch chooses what is loaded; the schedule is {runner.max_iters} iterations in '
            f'place of {self.full_iters} ({epochs:.1f} epochs)',
            'current',
        )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._indices, weights = self._sampler.take(len(data_batch['inputs']))
        self._weights.weights = weights[:, get_rank()]

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._weights.weights = None
        losses = torch.stack(all_gather(self._weights.take_losses()), dim=1)
        self._sampler.update(self._indices.flatten(), losses.flatten())


def shortened_iters(
    full_iters: int, images_per_iter: int, size: int, prune_ratio: float, percentile: float | None
) -> int:
    """Iterations in which InfoBatch is expected to get through the candidates of a run on full
    data, if half of the losses are below their mean.

    Args:
        full_iters: iterations of the run on full data.
        images_per_iter: images of an iteration, over all processes.
        size: samples of the data set.
        prune_ratio, percentile: see InfoBatchSampler.
    """
    num_epochs = full_iters * images_per_iter / size
    below = size / 2 if percentile is None else math.ceil(percentile / 100 * (size - 1))
    trained = 0.0
    for epoch in range(math.ceil(num_epochs)):  # the last may not end
        left_out = prune_ratio * below if 0 < epoch < DELTA * num_epochs else 0.0
        trained += min(1.0, num_epochs - epoch) * (size - left_out)
    return max(1, round(trained / images_per_iter))


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]
