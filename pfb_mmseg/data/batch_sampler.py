"""PFBBatchSampler: what leaves images out of a batch before they are loaded."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

from ..core import KeepQuota
from ..core.checks import check_integer, check_number

SKIPPED = -1.0  # in place of the standing of an image that was not loaded
_FORGETS = 0.5  # weight of a new standing against the average of those before
_MOST_WAITING = 1024  # batches that wait for their step; no loader reads so far ahead


@DATA_SAMPLERS.register_module()
class PFBBatchSampler(BatchSampler):
    """Leaves images out of each batch before they are loaded: those that scored low lately.

    The first of two stages: PFB chooses among the images that are loaded. Both together leave out
    ``prune_ratio``. In a config, beside :class:`PFBHook`::

        train_dataloader = dict(batch_sampler=dict(type='PFBBatchSampler', skip_loading=0.3))

    Epochs, iterations and schedules stay what they are. Images are left out between PFBHook's
    ``begin`` and ``end``. An image that was never scored is always loaded.

    An image's standing is its rank by the criterion's score among the images that it was loaded
    with: 0 for the least wanted, 1 for the most wanted, averaged over the last few times. Image i
    of a batch is loaded if it is among those with the highest

    .. math:: contrast \\cdot standing_i + missed_i + G_i

    where missed counts how often in a row it was left out, and G is a standard Gumbel draw. Every
    image can be drawn; each skip in a row multiplies its sampling weight by e.

    A decision uses what was known a fixed number of iterations ago, at least as many as the loader
    reads ahead, and its draws depend on seed, process and iteration alone. So a resumed run loads
    the same images as one that was not interrupted.

    Args:
        sampler: of the images of this process, MMEngine's InfiniteSampler or DefaultSampler.
        batch_size: images of a batch before any is left out, per process.
        skip_loading: share of them that is not loaded, in [0, 1), less than ``prune_ratio``.
        contrast: how much more often images of high standing are loaded, at least 0.
        drop_last: whether a last batch that is not full is left out.
        seed: of the draws; None: one for all processes at random.

    Attributes:
        candidates (int): images proposed so far in steps of this process.
        begin (int): first iteration in which images are left out.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        skip_loading: float = 0.3,
        contrast: float = 4.0,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        check_number('skip_loading', skip_loading, 0, 1, open_high=True)
        check_number('contrast', contrast, 0, float('inf'), open_high=True)
        if seed is not None:
            check_integer('seed', seed, low=0)
        self._quota = KeepQuota(skip_loading)
        self.skip_loading = skip_loading
        self.contrast = contrast
        self.seed = sync_random_seed() if seed is None else seed
        self._rank = get_dist_info()[0]
        self.candidates = 0
        self.begin = self.end = 0
        self._delay = 1
        self._places = np.zeros(0, np.int64)
        self._known = Standings(0)
        self._taken = 0  # batches that steps have got
        self._in_vain = 0  # of them, those that a resumed loop asks for again and throws away
        # Batches that steps have not got yet: number, images proposed, which of them are loaded.
        self._handed_out: deque[tuple[int, np.ndarray, np.ndarray]] = deque(maxlen=_MOST_WAITING)

    def start(
        self,
        places: np.ndarray,
        begin: int,
        end: int,
        ahead: int,
        iteration: int = 0,
        num_discarded: int = 0,
    ) -> None:
        """Say, before the first step of a run, what is not known when a loader is built.

        Args:
            places: (len(dataset),) int64, see :attr:`Places.of_index`; indices of one sample share
                what is known of it.
            begin, end: iterations between which images are left out.
            ahead: batches that the loader asks for before it needs them.
            iteration: that the run begins with; not 0 if it is resumed.
            num_discarded: batches that a resumed loop asks for first and throws away.
        """
        # Batches that workers may have asked for before this call are full ones.
        self.begin, self.end = max(begin, ahead), end
        self._delay = ahead + 1
        self._places = places
        self._known = Standings(int(places.max(initial=-1)) + 1)
        self._taken, self._in_vain = iteration, num_discarded

    def __iter__(self) -> Iterator[list[int]]:
        self._handed_out.clear()
        number = self._taken - self._in_vain
        for batch in super().__iter__():
            if number < self._taken:  # thrown away by a loop that is resumed
                yield batch[:1]
            else:
                proposed = np.array(batch)
                loaded = self._choose(number, proposed)
                self._handed_out.append((number, proposed, loaded))
                yield proposed[loaded].tolist()
            number += 1
            if number == _MOST_WAITING and not self.end:
                print_log(
                    'PFBBatchSampler loads all images and learns nothing: no hook has started it. '
                    'Add dict(type="PFBHook") to custom_hooks, or remove batch_sampler from '
                    'train_dataloader.',
                    logger='current',
                    level=logging.WARNING,
                )

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """What the step to come was given: (M,) indices proposed, int64, and which are loaded.

        Raises:
            RuntimeError: the loader has given no batch to this step.
        """
        self._in_vain = 0
        while self._handed_out and self._handed_out[0][0] < self._taken:
            self._handed_out.popleft()  # read before the run was resumed
        if not self._handed_out:
            raise RuntimeError(
                f'iteration {self._taken} got no batch of PFBBatchSampler: the loop reads another '
                'data loader. Remove batch_sampler from train_dataloader'
            )
        _, proposed, loaded = self._handed_out.popleft()
        self._taken += 1
        self.candidates += len(proposed)
        return proposed, loaded

    def update(self, indices: np.ndarray, standing: np.ndarray) -> None:
        """Note what became of the images of the last step. Called alike in every process.

        Args:
            indices: (M,) int64, of the data set, of all processes.
            standing: (M,) float32 in [0, 1]; NaN where it is not known, :data:`SKIPPED` for an
                image that was not loaded.
        """
        settled = self._taken - self._delay + 1
        self._known.note(self._taken - 1, self._places[indices], standing, settled)

    def state_dict(self) -> dict[str, Any]:
        """What is known; the same in every process."""
        return {
            'candidates': self.candidates,
            'delay': self._delay,
            'seed': self.seed,
            **self._known.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, behind :meth:`start`.

        Raises:
            ValueError: the state is of a data set with another number of samples.
        """
        self._known.load_state_dict(state)
        self.candidates = state['candidates']
        self._delay = max(self._delay, state['delay'])
        self.seed = state['seed']

    def _choose(self, number: int, proposed: np.ndarray) -> np.ndarray:
        """(M,) bool, which images of a batch are loaded."""
        loaded = np.ones(len(proposed), bool)
        if not self.begin <= number < self.end:
            return loaded
        num_skipped = len(proposed) - self._quota.keep(number - self.begin, len(proposed))
        standing, missed = self._known.before(number - self._delay + 1, self._places[proposed])
        generator = np.random.default_rng([self.seed, self._rank, number])
        size = self.contrast * standing + missed + generator.gumbel(size=len(proposed))
        # NaN, of images that were never scored, is sorted behind all others.
        lowest = np.argsort(size, kind='stable')[:num_skipped]
        loaded[lowest[np.isfinite(size[lowest])]] = False
        return loaded


class Standings:
    """What is known of each of ``size`` images, as it was before any of the last iterations."""

    def __init__(self, size: int) -> None:
        # Before the iterations in the log.
        self._standing = np.full(size, np.nan, np.float32)
        self._missed = np.zeros(size, np.int16)
        # (iteration, indices, standing), in this order.
        self._log: deque[tuple[int, np.ndarray, np.ndarray]] = deque()

    def note(self, iteration: int, indices: np.ndarray, standing: np.ndarray, settled: int) -> None:
        """Add an iteration; those before ``settled`` need not be told apart any more."""
        self._log.append((iteration, indices, standing))
        while self._log and self._log[0][0] < settled:
            _, rows, seen = self._log.popleft()
            after = _after(self._standing[rows], self._missed[rows], seen)
            self._standing[rows], self._missed[rows] = after

    def before(self, iteration: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standings (M,), NaN where unknown, and how often in a row each was left out, before an
        iteration that is not settled."""
        standing, missed = self._standing[indices], self._missed[indices]
        for logged, others, seen in self._log:
            if logged >= iteration:
                break
            places, rows = np.nonzero(indices[:, None] == others)
            standing[places], missed[places] = _after(standing[places], missed[places], seen[rows])
        return standing, missed

    def state_dict(self) -> dict[str, Any]:
        # Copies: the state may be written down while the run goes on.
        return {
            'standing': torch.from_numpy(self._standing.copy()),
            'missed': torch.from_numpy(self._missed.copy()),
            'log': [(number, *map(torch.from_numpy, seen)) for number, *seen in self._log],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state['standing']) != len(self._standing):
            raise ValueError(
                f'the checkpoint knows {len(state["standing"])} samples, the data set has '
                f'{len(self._standing)}: resume with the data that the run began with'
            )
        # MMEngine puts whatever a checkpoint holds on the device.
        self._standing, self._missed = (
            state[name].cpu().numpy().copy() for name in ('standing', 'missed')
        )
        self._log = deque(
            (number, *(tensor.cpu().numpy() for tensor in seen)) for number, *seen in state['log']
        )


def _after(
    standing: np.ndarray, missed: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Standing and missed, (M,) each, after an iteration in which ``seen`` was noted."""
    skipped = seen == SKIPPED
    mixed = np.where(np.isnan(standing), seen, standing + _FORGETS * (seen - standing))
    learnt = ~skipped & np.isfinite(seen)
    return np.where(learnt, mixed, standing), np.where(skipped, missed + 1, 0).astype(missed.dtype)
