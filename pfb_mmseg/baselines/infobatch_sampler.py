"""InfoBatchSampler: an endless stream of samples, shortened epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor
from torch.utils.data import Sampler

from ..core.checks import check_integer, check_keys, check_number
from ..core.draws import generator_of
from .infobatch import prune_epoch


@DATA_SAMPLERS.register_module()
class InfoBatchSampler(Sampler):
    """Takes InfiniteSampler's place in an iteration-based run; pruned samples are not even loaded.

    An epoch is one pass over what :func:`prune_epoch` leaves of the data set, and the next one
    follows without a gap. All processes hold the same scores and the same stream, of which each
    hands its share to its loader. A loader with workers asks ahead: an epoch is drawn as many
    batches early, from the scores there are by then.

    InfoBatchHook drives it. Without the hook no score is ever known, and nothing is pruned.

    Args:
        dataset: anything with a length.
        prune_ratio: r, in [0, 1), share of the samples below the threshold that is left out.
        percentile: the threshold; None is the mean of the scores (InfoBatch*), 95 makes nearly all
            samples candidates, so that r is the actual pruning ratio (InfoBatch†).
        seed: the draws of an epoch are a function of (seed, epoch) alone; None: one for all
            processes at random.

    Attributes:
        num_pruned_epochs (float): epochs from this one on are not pruned.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        dataset: Sized,
        prune_ratio: float = 0.5,
        percentile: float | None = None,
        seed: int | None = None,
        **unknown: Any,
    ) -> None:
        check_keys('InfoBatchSampler', unknown, ('prune_ratio', 'percentile', 'seed'))
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
        if percentile is not None:
            check_number('percentile', percentile, 0, 100)
        if seed is not None:
            check_integer('seed', seed, low=0)
        self.prune_ratio = prune_ratio
        self.percentile = percentile
        self.seed = sync_random_seed() if seed is None else seed
        self.size = len(dataset)
        self.num_pruned_epochs = float('inf')
        self.scores = torch.full((self.size,), float('nan'))
        self._rank, self._world_size = get_dist_info()
        self._epoch = 0
        # What is still to be trained on, by all processes in turns: index, weight, and how many
        # candidates each stands for. The loader of this process has the first rows already.
        self._stream = torch.zeros(0, 3, dtype=torch.float64)
        self._handed_out = 0
        self._num_fillers = 0

    def __iter__(self) -> Iterator[int]:
        self._handed_out = 0
        while True:
            if self._num_fillers:
                self._num_fillers -= 1
                yield 0
                continue
            self._handed_out += 1
            self._draw_until(self._handed_out)
            row = (self._handed_out - 1) * self._world_size + self._rank
            yield int(self._stream[row, 0])

    def __len__(self) -> int:
        """Samples of the data set."""
        return self.size

    def take(self, num_samples: int) -> Tensor:
        """Name the samples of the next iteration, and forget them.

        Args:
            num_samples: per process.

        Returns:
            (num_samples, world_size, 3) float64: index, weight, and the number of candidates that
            this sample stands for.
        """
        self._draw_until(num_samples)
        rows = num_samples * self._world_size
        taken, self._stream = self._stream[:rows], self._stream[rows:]
        self._handed_out = max(0, self._handed_out - num_samples)
        return taken.view(num_samples, self._world_size, 3)

    def update(self, indices: Tensor, losses: Tensor) -> None:
        """Note the losses (M,) of samples (M,) as their scores; one that is not finite is none.

        The scores stay on the losses' device until an epoch is drawn: a step waits for nothing.
        """
        self.scores = self.scores.to(losses.device)
        losses = losses.float().masked_fill(~losses.isfinite(), float('nan'))
        self.scores.index_copy_(0, indices.to(losses.device, non_blocking=True), losses)

    def skip(self, num_samples: int) -> None:
        """Nothing to skip: a resumed sampler stands where the run was interrupted."""

    def state_dict(self) -> dict:
        """The scores and what remains of the stream; the same on every process."""
        return {'scores': self.scores.cpu(), 'stream': self._stream.clone(), 'epoch': self._epoch}

    def load_state_dict(self, state: dict, num_discarded: int = 0) -> None:
        """Go on from a state.

        Args:
            state: of :meth:`state_dict`, also of a run with another number of processes.
            num_discarded: samples that this process's loader will be asked for in vain first, as
                OpenMMLab's mmengine does to get past the iterations before a checkpoint.

        Raises:
            ValueError: the state is of a data set of another length.
        """
        if len(state['scores']) != self.size:
            raise ValueError(
                f'the checkpoint has scores of {len(state["scores"])} samples, the data set has '
                f'{self.size}: resume with the data that the run began with'
            )
        # A loader that reads ahead holds batches of the stream that ends here.
        world_size, handed_out = self._world_size, self._handed_out
        held = self._stream[num_discarded * world_size : handed_out * world_size]
        self._num_fillers = max(0, num_discarded - handed_out)
        self._handed_out = max(0, handed_out - num_discarded)
        self._stream = torch.cat([held, state['stream'].double()])
        self.scores = state['scores'].clone()
        self._epoch = int(state['epoch'])

    def _draw_until(self, num_samples: int) -> None:
        """Extend the stream to this many samples per process, for all processes at once: they
        must draw an epoch at the same moment, from the same scores."""
        while len(self._stream) < num_samples * self._world_size:
            generator = generator_of(self.seed, self._epoch)
            ratio = self.prune_ratio if self._epoch < self.num_pruned_epochs else 0.0
            indices, weights = prune_epoch(self.scores.cpu(), ratio, self.percentile, generator)
            stands_for = torch.full_like(weights, self.size / len(indices))
            epoch = torch.stack([indices.double(), weights, stands_for], dim=1)
            self._stream = torch.cat([self._stream, epoch])
            self._epoch += 1
