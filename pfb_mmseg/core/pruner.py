"""BatchPruner: the features of a batch in, the images that stay out. Algorithm 1 of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_choice, check_integer, check_number
from .estimator import AdaptiveDensityEstimator
from .quota import KeepQuota
from .ranks import Exchange, Gather, all_values, rank, world_size
from .representation import pool_features
from .selection import EXPLORATION_SPACES, Selection, explored_log_density, keep_lowest

CRITERIA = ('rare', 'common', 'random')
SELECTION_SCOPES = ('rank', 'global')


class BatchPruner(nn.Module):
    """Decides which images of a batch are worth the rest of the step.

    Usable from any training loop: call it with the features at the blocking point, go on with
    ``selection.take(features)``, or with that of anything else that holds one row an image. Until
    the estimator has seeded all its centroids it keeps every image.

    In a distributed run every process must call it in every iteration. The estimator then learns
    from all of them and is the same everywhere, and each keeps the same number of images. A batch
    may be short, as the last one of an epoch often is, on all processes or on some: of it as many
    are kept as of a full one, as far as there are.

    Args:
        prune_ratio: p, in [0, 1): share of the candidates that is not trained on.
        estimator: the density estimate; a new one with its defaults if None.
        criterion: ``'rare'`` keeps the images of lowest density (the paper), ``'common'`` those of
            highest, ``'random'`` a new random subset each time, which needs no features.
        exploration: b of Eq. 3, at least 0.
        exploration_space: ``'density'`` or ``'log_density'``, see :func:`select_rare`.
        min_keep: the least number of images that stay, per process.
        seed: the draws of iteration t are a function of (seed, t) alone.
        selection_scope: ``'rank'``: each process keeps the rarest of its own images.
            ``'global'``: the rarest of all processes' images are kept, shared out evenly; only what
            goes through ``selection.take`` then belongs to the images that stay here.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    step: Tensor

    def __init__(
        self,
        prune_ratio: float = 0.3,
        estimator: AdaptiveDensityEstimator | None = None,
        criterion: str = 'rare',
        exploration: float = 0.01,
        exploration_space: str = 'density',
        min_keep: int = 1,
        seed: int = 0,
        selection_scope: str = 'rank',
    ) -> None:
        super().__init__()
        check_choice('criterion', criterion, CRITERIA)
        check_choice('selection_scope', selection_scope, SELECTION_SCOPES)
        check_number('exploration', exploration, 0, float('inf'), open_high=True)
        check_choice('exploration_space', exploration_space, EXPLORATION_SPACES)
        check_integer('seed', seed, low=0)
        if estimator is not None and not isinstance(estimator, AdaptiveDensityEstimator):
            raise TypeError(
                f'estimator={estimator!r}: expected an AdaptiveDensityEstimator or None, got '
                f'{type(estimator).__name__}'
            )
        self.quota = KeepQuota(prune_ratio, min_keep)
        self.estimator = AdaptiveDensityEstimator() if estimator is None else estimator
        self.criterion = criterion
        self.exploration = exploration
        self.exploration_space = exploration_space
        self.seed = seed
        self.selection_scope = selection_scope
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))
        # The host's copy of the buffer, so that no decision waits for the device.
        self._step = 0
        self._full_size: int | None = None
        self._lesson: Gather | None = None

    @property
    def needs_features(self) -> bool:
        """Whether a decision takes a look at the images at all."""
        return self.criterion != 'random' and self.quota.prune_ratio > 0

    @property
    def ready(self) -> bool:
        """Whether a decision can be made: the centroids are seeded, or are not needed."""
        return self.estimator.ready or not self.needs_features

    def num_keep(self, batch_size: int) -> int:
        """Number of images that stay of a full batch in the next :meth:`forward`."""
        return self.quota.keep(self._step, batch_size) if self.ready else batch_size

    @torch.compiler.disable  # driven by the host's counters, which change in every step
    def keeps_all(self, batch_size: int) -> bool:
        """Whether the next :meth:`forward` would only say that every image stays.

        Every process gets the same answer, so that none is left alone in a collective.

        Args:
            batch_size: N of the batch to come.
        """
        full_size = self._agree_on_full_size(batch_size)
        return self.ready and self.num_keep(full_size) == full_size

    def forward(self, features: Tensor) -> Selection:
        """Score a batch, choose, and learn from what was chosen (Algorithm 1, lines 6–10).

        Args:
            features: (N, C, H, W), or (N, C) if already averaged over space. Only the first
                dimension is looked at where the criterion needs no features.

        Returns:
            The selection; ``log_density`` is None for a criterion that needs none, and before
            the estimator is ready.

        Raises:
            ValueError: in a distributed run, the batch is larger than the first one was.
        """
        selection = self.select(features)
        self.learn()
        return selection

    @torch.compiler.disable
    @torch.no_grad()
    def select(self, features: Tensor) -> Selection:
        """:meth:`forward` but for the learning, whose data are sent on their way meanwhile.

        :meth:`learn` must follow before the next batch.
        """
        num, size = len(features), self._agree_on_full_size(len(features))
        x = pool_features(features, self.estimator.dim) if self.needs_features else None
        if self.ready and self.selection_scope == 'global' and world_size() > 1:
            return self._select_among_all(x, num, size, features.device)
        if self.ready:
            num_keep = min(self.num_keep(size), num)
            indices, log_density = self._choose(x, num, num_keep, features.device)
        else:
            log_density = None
            indices = torch.arange(num, device=features.device)
        if x is not None:
            self._lesson = Gather(_fill_up(x.index_select(0, indices), self.num_keep(size)))
        return Selection(indices, num, log_density)

    def _select_among_all(
        self, x: Tensor | None, num: int, size: int, device: torch.device
    ) -> Selection:
        """The same choice in every process, from the candidates of all."""
        x = None if x is None else Gather(_fill_up(x, size)).wait()
        ranks = world_size()
        kept, log_density = self._choose(x, ranks * size, ranks * self.num_keep(size), device)
        if x is not None:  # all that there is to learn from is here
            self.estimator.update(x.index_select(0, kept))
            log_density = log_density[rank() * size :][:num]
        exchange = Exchange(kept, size)
        return Selection(exchange.share, num, log_density, exchange)

    def _choose(
        self, x: Tensor | None, num: int, num_keep: int, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """(num_keep,) ascending positions, and (num,) log densities if there are vectors."""
        with torch.inference_mode():  # the many small calls cost less
            log_density = None if x is None else self.estimator.log_density(x)
            kept = keep_lowest(self._score(num, log_density, device), num_keep)
        # Autograd takes no tensor that was made in there.
        return kept.clone(), None if log_density is None else log_density.clone()

    @torch.compiler.disable
    def learn(self) -> None:
        """Update the estimator with what all processes kept of their last batches."""
        if self._lesson is not None:
            self.estimator.update(self._lesson.wait())
            self._lesson = None
        self.skip()

    @torch.compiler.disable
    def skip(self) -> None:
        """Let an iteration pass without looking at its batch."""
        self.step.add_(1)
        self._step += 1

    def _agree_on_full_size(self, batch_size: int) -> int:
        """N of a full batch, on whichever process. The first call waits for the others."""
        if world_size() == 1:
            return batch_size
        if self._full_size is None:
            self._full_size = max(n for (n,) in all_values((batch_size,), self.step.device))
        if batch_size > self._full_size:
            raise ValueError(
                f'a batch of {batch_size} images on rank {rank()}, after the ranks agreed on '
                f'{self._full_size} in their first iteration: batches may become smaller, not '
                'larger; let the first one be as large as any'
            )
        return self._full_size

    def _score(self, num: int, log_density: Tensor | None, device: torch.device) -> Tensor:
        """(N,) whose lowest entries stay; an image without a density never ranks before others."""
        seed = (self.seed * 1_000_003 + self._step) % 2**63
        generator = torch.Generator(device).manual_seed(seed)
        if log_density is None:
            return torch.rand(num, generator=generator, device=device)
        score = explored_log_density(
            log_density, self.exploration, self.exploration_space, generator
        )
        if self.criterion == 'common':
            return torch.where(torch.isposinf(score), score, -score)
        return score

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        state_dict.setdefault(f'{prefix}step', self.step)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._step = int(self.step)

    def extra_repr(self) -> str:
        return (
            f'prune_ratio={self.quota.prune_ratio}, criterion={self.criterion!r}, '
            f'exploration={self.exploration}, exploration_space={self.exploration_space!r}, '
            f'min_keep={self.quota.min_keep}, seed={self.seed}, '
            f'selection_scope={self.selection_scope!r}'
        )


def _fill_up(x: Tensor, num: int) -> Tensor:
    """Rows that are no image up to ``num``: collectives want the same number from every process."""
    return x if len(x) == num else F.pad(x, (0, 0, 0, num - len(x)), value=torch.nan)
