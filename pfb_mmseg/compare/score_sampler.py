"""ScoreSampler: a stream of samples, drawn epoch by epoch by what was last seen of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch import Tensor
from torch.utils.data import Sampler

from ..core.checks import check_integer
from ..core.draws import generator_of

# Columns of the stream. Float64 holds the index of any sample exactly.
_INDEX, _WEIGHT, _STAND_FOR = range(3)


class ScoreSampler(Sampler, ABC):
    """Takes InfiniteSampler's place; what it does not draw is not even loaded.

    An epoch is one pass over what :meth:`draw` leaves of the data set, so its length may change;
    the next epoch follows without a gap. All processes hold the same scores and the same stream, of
    which each hands its share to its loader. A loader with workers asks ahead: an epoch is drawn as
    many batches early, from the scores there are by then.

    ScoreSamplerHook drives it. Without the hook no score is ever known. It is for runs that count
    iterations; a subclass implements :meth:`draw`.

    Args:
        dataset: anything with a length.
        seed: the draws of an epoch are a function of (seed, epoch) and the scores; None: one for
            all processes at random.

    Attributes:
        size (int): samples of the data set.
        num_epochs (float): passes over all candidates in the whole run; infinite until the hook
            says how many.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        if seed is not None:
            check_integer('seed', seed, low=0)
        self.seed = sync_random_seed() if seed is None else seed
        self.size = len(dataset)
        self.num_epochs = float('inf')
        self._scores = torch.full((self.size,), float('nan'))
        self._news: list[tuple[Tensor, Tensor]] = []
        self._rank, self._world_size = get_dist_info()
        self._num_drawn = 0  # epochs
        # What is still to be trained on, by all processes in turns: index, weight, and how many
        # candidates each sample was chosen from.
        self._stream = torch.zeros(0, 3, dtype=torch.float64)
        self._handed_out = 0  # of this process's share, those that its loader has already
        self._num_fillers = 0  # samples that a resumed loop will ask for and throw away

    @abstractmethod
    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Choose the samples of an epoch, from ``self.scores``.

        It must be a function of the arguments and the scores: all processes call it by themselves.

        Args:
            epoch: counted from 0.
            generator: of the draws, on the CPU.

        Returns:
            (K,) indices in the order of training, K >= 1, and (K,) weights of their losses, or None
            where all count alike.
        """

    @property
    def scores(self) -> Tensor:
        """(size,) float32 on the CPU, last score of each sample; NaN: never seen, or not finite."""
        values = self._scores.numpy()
        for indices, scores in self._news:
            seen = scores.float().cpu().numpy()
            # Of an index that is there twice, NumPy takes the last value.
            values[indices.numpy()] = np.where(np.isfinite(seen), seen, np.nan)
        self._news.clear()
        return self._scores

    @property
    def candidates(self) -> float:
        """Samples that those trained on so far were chosen from, over all processes."""
        return self._num_drawn * self.size - float(self._stream[:, _STAND_FOR].sum())

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
            yield int(self._stream[row, _INDEX])

    def __len__(self) -> int:
        return self.size

    def take(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Name the samples of the next iteration, and forget them.

        Args:
            num_samples: per process.

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

    def update(self, indices: Tensor, scores: Tensor) -> None:
        """Note what was seen of samples, the same on every process.

        The scores stay on their device until an epoch is drawn: a step waits for nothing.

        Args:
            indices: (M,) on the CPU; of a sample that is there twice, the last counts.
            scores: (M,); one that is not finite is none.
        """
        self._news.append((indices, scores))

    def skip(self, num_samples: int) -> None:
        """Nothing to skip: a resumed sampler stands where the run was interrupted."""

    def state_dict(self) -> dict:
        """The scores and what remains of the stream; the same on every process."""
        return {
            'scores': self.scores.clone(),
            'epoch': self._num_drawn,
            'stream': self._stream.clone(),
        }

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
        self._stream = torch.cat([held, state['stream'].cpu()])
        self._scores = state['scores'].cpu().clone()
        self._news.clear()
        self._num_drawn = int(state['epoch'])

    def _draw_until(self, num_samples: int) -> None:
        """Extend the stream to this many samples per process, for all processes at once: they
        must draw an epoch at the same moment, from the same scores."""
        while len(self._stream) < num_samples * self._world_size:
            generator = generator_of(self.seed, self._num_drawn)
            indices, weights = self.draw(self._num_drawn, generator)
            self._num_drawn += 1
            epoch = torch.ones(len(indices), 3, dtype=torch.float64)
            epoch[:, _INDEX] = indices
            if weights is not None:
                epoch[:, _WEIGHT] = weights
            epoch[:, _STAND_FOR] = self.size / len(indices)
            self._stream = torch.cat([self._stream, epoch])
