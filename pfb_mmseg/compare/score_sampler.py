"""ScoreSampler: a stream of samples, drawn epoch by epoch by what was last seen of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch import Tensor
from torch.utils.data import Sampler

from ..core.checks import check_bool, check_integer
from ..core.draws import generator_of


class Taken(NamedTuple):
    """The samples of an iteration.

    Attributes:
        indices: (N, world_size) int64; a column for each process.
        weights: (N, world_size) float32, by which their losses count.
    """

    indices: Tensor
    weights: Tensor


class ScoreSampler(Sampler, ABC):
    """Takes InfiniteSampler's or DefaultSampler's place; what it does not draw is not even loaded.

    An epoch is one pass over what :meth:`draw` leaves of the data set, so its length may change. In
    an iteration-based run the next epoch follows without a gap. All processes hold the same scores
    and the same stream, of which each hands its share to its loader. A loader with workers asks
    ahead: in an iteration-based run, an epoch is drawn as many batches early, from the scores there
    are by then; in an epoch-based run it is drawn when the one before has ended.

    ScoreSamplerHook drives it. Without the hook no score is ever known.

    A subclass implements :meth:`draw`; one that remembers more than the last score extends
    :meth:`update`, :meth:`state_dict` and :meth:`load_state_dict`. Drawing costs a few passes over
    the data set, once an epoch; a step costs what its own samples cost. The state takes 4 bytes a
    sample, and 12 for each that the epoch has left.

    Args:
        dataset: anything with a length.
        seed: the draws of an epoch are a function of (seed, epoch) and the scores; None: one for
            all processes at random.
        by_epoch: whether the loop counts epochs. The last samples of an epoch are then filled up
            with its first ones, so that all processes have as many (DefaultSampler's
            ``round_up=True``).

    Attributes:
        scores (Tensor): (size,) float32, last score of each sample; NaN: never seen, or not finite.
        size (int): samples of the data set.
        num_epochs (float): passes over all candidates in the whole run; infinite until the hook
            says how many.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, by_epoch: bool = False) -> None:
        if seed is not None:
            check_integer('seed', seed, low=0)
        check_bool('by_epoch', by_epoch)
        self.seed = sync_random_seed() if seed is None else seed
        self.by_epoch = by_epoch
        self.size = len(dataset)
        self.num_epochs = float('inf')
        self.scores = torch.full((self.size,), float('nan'))
        self._rank, self._world_size = get_dist_info()
        self._num_drawn = 0  # epochs
        self._next_epoch = 0  # that an epoch-based loop is to get
        self._epoch_size: int | None = None  # its samples per process
        # What is still to be trained on, by all processes in turns. The loader of this process has
        # the first rows already.
        self._stream = _Rows.of(torch.zeros(0), None, 0.0)
        self._handed_out = 0
        self._num_fillers = 0

    @abstractmethod
    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Choose the samples of an epoch, from ``self.scores`` on the CPU.

        It must be a function of the arguments and the scores: all processes call it by themselves.

        Args:
            epoch: counted from 0.
            generator: of the draws, on the CPU.

        Returns:
            (K,) indices in the order of training, K >= 1, and (K,) weights of their losses, or None
            where all count alike.
        """

    @property
    def candidates(self) -> float:
        """Samples that those trained on so far were chosen from, over all processes."""
        left = float(self._stream.stand_for.sum(dtype=np.float64))
        return self._num_drawn * self.size - left

    def __str__(self) -> str:
        return type(self).__name__

    def __iter__(self) -> Iterator[int]:
        return self._one_epoch() if self.by_epoch else self._endless()

    def __len__(self) -> int:
        """Samples of the data set; with ``by_epoch``, of this process in the present epoch."""
        if not self.by_epoch:
            return self.size
        if self._epoch_size is None:  # the loop asks how long the run will be
            self._begin_epoch()
        return self._epoch_size

    def set_epoch(self, epoch: int) -> None:
        """The epoch that an epoch-based loop begins; of one that was interrupted, the rest."""
        if self.by_epoch:
            self._next_epoch = epoch

    def take(self, num_samples: int) -> Taken:
        """Name the samples of the next iteration, and forget them.

        Args:
            num_samples: per process.
        """
        if not self.by_epoch:
            self._draw_until(num_samples)
        rows = num_samples * self._world_size
        taken, self._stream = self._stream.part(0, rows), self._stream.part(rows)
        self._handed_out = max(0, self._handed_out - num_samples)
        indices, weights = (
            torch.from_numpy(column.copy()).view(num_samples, self._world_size)
            for column in (taken.indices, taken.weights)
        )
        return Taken(indices.long(), weights)

    def update(self, indices: Tensor, scores: Tensor) -> None:
        """Note what was seen of samples, the same on every process.

        The scores stay on their device until an epoch is drawn: a step waits for nothing.

        Args:
            indices: (M,) on the CPU; of a sample that is there twice, the last counts.
            scores: (M,); one that is not finite is none.
        """
        self.scores = self.scores.to(scores.device)
        scores = scores.float().masked_fill(~scores.isfinite(), float('nan'))
        # What index_copy_ does with a repeated index is not defined, and ranks must not differ.
        last = np.unique(indices.numpy()[::-1], return_index=True)[1]
        if len(last) < len(indices):
            rows = torch.from_numpy(len(indices) - 1 - last)
            indices, scores = indices[rows], scores[rows.to(scores.device)]
        self.scores.index_copy_(0, indices.to(scores.device, non_blocking=True), scores)

    def skip(self, num_samples: int) -> None:
        """Nothing to skip: a resumed sampler stands where the run was interrupted."""

    def state_dict(self) -> dict:
        """The scores and what remains of the stream; the same on every process."""
        return {
            'scores': self.scores.cpu().clone(),
            'epoch': self._num_drawn,
            **self._stream.state_dict(),
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
        held = self._stream.part(num_discarded * world_size, handed_out * world_size)
        self._num_fillers = max(0, num_discarded - handed_out)
        self._handed_out = max(0, handed_out - num_discarded)
        self._stream = _Rows.join(held, _Rows.from_state(state))
        self._epoch_size = len(self._stream) // world_size
        self.scores = state['scores'].cpu().clone()
        self._num_drawn = int(state['epoch'])
        self._next_epoch = self._num_drawn - 1 if len(self._stream) else self._num_drawn

    def _endless(self) -> Iterator[int]:
        self._handed_out = 0
        while True:
            if self._num_fillers:
                self._num_fillers -= 1
                yield 0
                continue
            self._handed_out += 1
            self._draw_until(self._handed_out)
            row = (self._handed_out - 1) * self._world_size + self._rank
            yield int(self._stream.indices[row])

    def _one_epoch(self) -> Iterator[int]:
        """What is left of an epoch that was begun, or a new one."""
        if self._next_epoch != self._num_drawn - 1:
            self._begin_epoch()
        indices = self._stream.indices  # take() shortens the stream
        self._epoch_size = len(indices) // self._world_size
        for turn in range(self._epoch_size):
            yield int(indices[turn * self._world_size + self._rank])
        self._next_epoch = self._num_drawn

    def _begin_epoch(self) -> None:
        """Draw the epoch that is to come; what the loader dropped of the last one is forgotten."""
        self._num_drawn = self._next_epoch
        indices, weights = self._draw()
        self._epoch_size = -(-len(indices) // self._world_size)
        total = self._epoch_size * self._world_size
        rows = torch.arange(total) % len(indices)
        weights = weights if weights is None else weights[rows]
        self._stream = _Rows.of(indices[rows], weights, self.size / total)

    def _draw_until(self, num_samples: int) -> None:
        """Extend the stream to this many samples per process, for all processes at once: they
        must draw an epoch at the same moment, from the same scores."""
        while len(self._stream) < num_samples * self._world_size:
            indices, weights = self._draw()
            epoch = _Rows.of(indices, weights, self.size / len(indices))
            self._stream = _Rows.join(self._stream, epoch)

    def _draw(self) -> tuple[Tensor, Tensor | None]:
        self.scores = self.scores.cpu()
        generator = generator_of(self.seed, self._num_drawn)
        drawn = self.draw(self._num_drawn, generator)
        self._num_drawn += 1
        return drawn


@dataclass(frozen=True)
class _Rows:
    """Samples in the order of training; NumPy, which hands out single numbers quicker than PyTorch.

    Attributes:
        indices: (M,) int32.
        weights: (M,) float32.
        stand_for: (M,) float32, candidates that each was chosen from.
    """

    indices: np.ndarray
    weights: np.ndarray
    stand_for: np.ndarray

    @classmethod
    def of(cls, indices: Tensor, weights: Tensor | None, stand_for: Tensor | float) -> _Rows:
        size = len(indices)
        weights = torch.ones(size) if weights is None else weights.float()
        stand_for = torch.as_tensor(stand_for, dtype=torch.float32).expand(size)
        return cls(indices.int().numpy(), weights.numpy(), stand_for.numpy())

    @classmethod
    def join(cls, *parts: _Rows) -> _Rows:
        columns = zip(*(part._columns() for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    @classmethod
    def from_state(cls, state: dict) -> _Rows:
        return cls.of(*(state[name].cpu() for name in ('indices', 'weights', 'stand_for')))

    def state_dict(self) -> dict[str, Tensor]:
        names = ('indices', 'weights', 'stand_for')
        # A copy: a column may be a single number that stands for all rows.
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in names}

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int | None = None) -> _Rows:
        return _Rows(*(column[start:stop] for column in self._columns()))

    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.indices, self.weights, self.stand_for
