"""PFBBatchSampler: what leaves images out of a batch before they are loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..core import KeepQuota
from ..core.checks import check_bool, check_integer, check_keys, check_number

SKIPPED = -1.0  # stands where an image that was not loaded would have its standing
_FORGETS = 0.5  # share by which a new standing replaces what was known
_UNKNOWN = 1e6  # an image that was never looked at comes before all others


@DATA_SAMPLERS.register_module()
class PFBBatchSampler(Sampler):
    """Loads a part of each batch: rather those images that were worth it when last looked at.

    The first of two stages: PFB chooses among the images that are loaded, by what it sees of them
    today. Both together leave out ``prune_ratio``. In a config::

        train_dataloader = dict(batch_sampler=dict(type='PFBBatchSampler', skip_loading=0.3))

    beside ``batch_size``, ``sampler`` and all else as before; :class:`PFBHook` drives it. Of each
    batch that the sampler draws, the share ``skip_loading`` is not loaded: epochs, iterations and
    schedules stay what they are. Before PFBHook's ``begin`` plus an epoch, in which every image is
    looked at once, and from its ``end`` on, all images are loaded.

    What is known of an image is its standing among those that it was loaded with: 0 for the one
    that the criterion wants least, 1 for the one it wants most, averaged over the last few times.
    Image i of a batch stays by the size of

    .. math:: contrast \\cdot standing_i + missed_i + G_i

    with the number of times in a row that it was left out, and a standard Gumbel draw: a random
    choice without replacement, in which each image has a chance in proportion to the exponential of
    the rest. No chance is ever zero, and each time that an image is left out multiplies it by e.

    A decision knows the steps up to a number of iterations before it, as many as the loader may
    read ahead: so the images of a resumed run and their order are those of one that was never
    interrupted. The draws are a function of the seed, the process and the iteration.

    Args:
        sampler: of the images of this process, MMEngine's InfiniteSampler or DefaultSampler.
        batch_size: images of a batch before any is left out, per process.
        skip_loading: share of them that is not loaded, in [0, 1), less than ``prune_ratio``.
        contrast: how much more often images of high standing are loaded, at least 0.
        drop_last: whether a last batch that is not full is left out.
        seed: of the draws; None: one for all processes at random.

    Attributes:
        candidates (int): images proposed so far in steps of this process.
        begin, end (int): iterations between which images are left out; none before :meth:`start`.

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
        **unknown: Any,
    ) -> None:
        options = ('skip_loading', 'contrast', 'drop_last', 'seed')
        check_keys('PFBBatchSampler', unknown, options)
        check_integer('batch_size', batch_size, low=1)
        check_number('skip_loading', skip_loading, 0, 1, open_high=True)
        check_number('contrast', contrast, 0, float('inf'), open_high=True)
        check_bool('drop_last', drop_last)
        if seed is not None:
            check_integer('seed', seed, low=0)
        self._quota = KeepQuota(skip_loading)
        self.sampler = sampler
        self.batch_size = batch_size
        self.skip_loading = skip_loading
        self.contrast = contrast
        self.drop_last = drop_last
        self.seed = sync_random_seed() if seed is None else seed
        self._rank = get_dist_info()[0]
        self.candidates = 0
        self.begin = self.end = 0
        self._delay = 1
        self._known = Standings(0)
        self._taken = 0  # batches that steps have got
        self._in_vain = 0  # of them, those that a resumed loop asks for again and throws away
        self._handed_out: deque[_Batch] = deque()

    def start(
        self,
        size: int,
        begin: int,
        end: int,
        ahead: int,
        iteration: int = 0,
        num_discarded: int = 0,
    ) -> None:
        """Say, before the first step of a run, what is not known when a loader is built.

        Args:
            size: images of the data set.
            begin, end: iterations between which images are left out.
            ahead: batches that the loader asks for before it needs them.
            iteration: that the run begins with; not 0 if it is resumed.
            num_discarded: batches that the loop asks for first and throws away, as MMEngine does to
                get past the iterations before a checkpoint.
        """
        self.begin, self.end = max(begin, ahead), end
        self._delay = ahead + 1
        self._known = Standings(size)
        self._taken, self._in_vain = iteration, num_discarded

    def num_loaded(self, iteration: int, num: int) -> int:
        """How many of the images of a batch are loaded; the same in every process."""
        if not self.begin <= iteration < self.end:
            return num
        return self._quota.keep(iteration - self.begin, num)

    def __iter__(self) -> Iterator[list[int]]:
        self._handed_out.clear()
        number = self._taken - self._in_vain
        for proposed in self._batches():
            if number < self._taken:  # nobody looks at it
                yield [int(proposed[0])]
            else:
                loaded = self._choose(number, proposed)
                self._handed_out.append(_Batch(number, proposed, loaded))
                yield proposed[loaded].tolist()
            number += 1

    def __len__(self) -> int:
        """Batches of the present epoch."""
        num = len(self.sampler)
        return num // self.batch_size if self.drop_last else -(-num // self.batch_size)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """What the step to come was given: (M,) indices proposed, int64, and which are loaded."""
        self._in_vain = 0
        while self._handed_out[0].number < self._taken:  # read before the run was resumed
            self._handed_out.popleft()
        batch = self._handed_out.popleft()
        self._taken += 1
        self.candidates += len(batch.proposed)
        return batch.proposed, batch.loaded

    def update(self, indices: np.ndarray, standing: np.ndarray) -> None:
        """Note what became of the images of the last step, the same in every process.

        Args:
            indices: (M,) int64, of all processes.
            standing: (M,) float32 in [0, 1]; NaN where it is not known, :data:`SKIPPED` for an
                image that was not loaded.
        """
        self._known.note(self._taken - 1, indices, standing, self._taken - self._delay + 1)

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

        Args:
            state: of :meth:`state_dict`.

        Raises:
            ValueError: the state is of a data set of another length.
        """
        self._known.load_state_dict(state)
        self.candidates = state['candidates']
        self._delay = max(self._delay, state['delay'])
        self.seed = state['seed']

    def _batches(self) -> Iterator[np.ndarray]:
        batch: list[int] = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield np.array(batch)
                batch = []
        if batch and not self.drop_last:
            yield np.array(batch)

    def _choose(self, number: int, proposed: np.ndarray) -> np.ndarray:
        """(M,) bool, which images of a batch are loaded."""
        loaded = np.ones(len(proposed), bool)
        num_loaded = self.num_loaded(number, len(proposed))
        if num_loaded < len(proposed):
            standing, missed = self._known.before(number - self._delay + 1, proposed)
            generator = np.random.default_rng([self.seed, self._rank, number])
            size = np.nan_to_num(self.contrast * standing, nan=_UNKNOWN) + missed
            size += generator.gumbel(size=len(proposed))
            loaded[np.argsort(-size, kind='stable')[num_loaded:]] = False
        return loaded


@dataclass(frozen=True)
class _Batch:
    number: int
    proposed: np.ndarray
    loaded: np.ndarray


class Standings:
    """What is known of each image, as it was before any of the last few iterations.

    Args:
        size: number of images.
    """

    def __init__(self, size: int) -> None:
        # Before the iterations in the log.
        self._standing = np.full(size, np.nan, np.float32)
        self._missed = np.zeros(size, np.int16)
        # (iteration, indices, standing), in this order.
        self._log: deque[tuple[int, np.ndarray, np.ndarray]] = deque()
        self._num_logged = np.zeros(size, np.int16)

    def __len__(self) -> int:
        return len(self._standing)

    def note(self, iteration: int, indices: np.ndarray, standing: np.ndarray, settled: int) -> None:
        """Add an iteration; those before ``settled`` need not be told apart any more."""
        self._log.append((iteration, indices, standing))
        np.add.at(self._num_logged, indices, 1)
        while self._log and self._log[0][0] < settled:
            _, indices, standing = self._log.popleft()
            np.subtract.at(self._num_logged, indices, 1)
            found = self._standing[indices], self._missed[indices]
            self._standing[indices], self._missed[indices] = _after(*found, standing)

    def before(self, iteration: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standings (M,), NaN where unknown, and how often in a row each was left out, before an
        iteration that is not settled."""
        standing, missed = self._standing[indices], self._missed[indices]
        if self._num_logged[indices].any():
            for logged, others, seen in self._log:
                if logged >= iteration:
                    break
                places, rows = np.nonzero(indices[:, None] == others)
                standing[places], missed[places] = _after(
                    standing[places], missed[places], seen[rows]
                )
        return standing, missed

    def state_dict(self) -> dict[str, Any]:
        # Copies: the state may be written down while the run goes on.
        return {
            'standing': torch.from_numpy(self._standing.copy()),
            'missed': torch.from_numpy(self._missed.copy()),
            'log': [(number, *map(torch.from_numpy, seen)) for number, *seen in self._log],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state['standing']) != len(self):
            raise ValueError(
                f'the checkpoint knows {len(state["standing"])} images, the data set has '
                f'{len(self)}: resume with the data that the run began with'
            )
        # MMEngine puts whatever a checkpoint holds on the device.
        self._standing, self._missed = (
            state[name].cpu().numpy().copy() for name in ('standing', 'missed')
        )
        self._log = deque(
            (number, *(tensor.cpu().numpy() for tensor in seen)) for number, *seen in state['log']
        )
        self._num_logged[:] = 0
        for _, indices, _ in self._log:
            np.add.at(self._num_logged, indices, 1)


def _after(
    standing: np.ndarray, missed: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is known of images after an iteration in which this was seen of them."""
    skipped = seen == SKIPPED
    mixed = np.where(np.isnan(standing), seen, standing + _FORGETS * (seen - standing))
    learnt = ~skipped & np.isfinite(seen)
    return np.where(learnt, mixed, standing), np.where(skipped, missed + 1, 0).astype(missed.dtype)
