"""BatchPruner: the features of a batch in, the images that stay out. Algorithm 1 of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .checks import check_choice, check_integer, check_number
from .estimator import AdaptiveDensityEstimator
from .quota import KeepQuota
from .representation import pool_features
from .selection import EXPLORATION_SPACES, Selection, explored_log_density, keep_lowest

CRITERIA = ('rare', 'common', 'random')


class BatchPruner(nn.Module):
    """Decides which images of a batch are worth the rest of the step.

    Usable from any training loop: call it with the features at the blocking point, go on with
    ``features[selection.indices]``. Until the estimator has seeded all its centroids it keeps
    every image. In a distributed run every process must call it in every iteration with the same
    number of images; the estimator then learns from all of them and is the same everywhere.

    Args:
        prune_ratio: p, in [0, 1): share of the candidates that is not trained on.
        estimator: the density estimate; a new one with its defaults if None.
        criterion: ``'rare'`` keeps the images of lowest density (the paper), ``'common'`` those of
            highest, ``'random'`` a new random subset each time, which needs no features.
        exploration: b of Eq. 3, at least 0.
        exploration_space: ``'density'`` or ``'log_density'``, see :func:`select_rare`.
        min_keep: the least number of images that stay.
        seed: the draws of iteration t are a function of (seed, t) alone.

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
    ) -> None:
        super().__init__()
        check_choice('criterion', criterion, CRITERIA)
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
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))
        # The host's copy of the buffer, so that no decision waits for the device.
        self._step = 0

    @property
    def needs_features(self) -> bool:
        """Whether a decision takes a look at the images at all."""
        return self.criterion != 'random' and self.quota.prune_ratio > 0

    @property
    def ready(self) -> bool:
        """Whether a decision can be made: the centroids are seeded, or are not needed."""
        return self.estimator.ready or not self.needs_features

    def num_keep(self, batch_size: int) -> int:
        """Number of images that :meth:`forward` will keep, known before any feature is."""
        return self.quota.keep(self._step, batch_size) if self.ready else batch_size

    @torch.compiler.disable  # driven by the host's counters, which change in every step
    def forward(self, features: Tensor) -> Selection:
        """Score a batch, choose, and learn from what was chosen (Algorithm 1, lines 6–10).

        Args:
            features: (N, C, H, W), or (N, C) if already averaged over space. Only the first
                dimension is looked at where the criterion needs no features.

        Returns:
            The selection; ``log_density`` is None for a criterion that needs none, and before
            the estimator is ready.
        """
        with torch.inference_mode():  # its many small calls cost less
            indices, log_density = self._decide(features)
        # Autograd takes no tensor that was made in there.
        log_density = None if log_density is None else log_density.clone()
        return Selection(indices.clone(), len(features), log_density)

    def _decide(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        num_keep = self.num_keep(len(features))
        x = pool_features(features, self.estimator.dim) if self.needs_features else None
        if self.ready:
            log_density = None if x is None else self.estimator.log_density(x)
            indices = keep_lowest(self._score(features, log_density), num_keep)
        else:
            log_density = None
            indices = torch.arange(num_keep, device=features.device)
        if x is not None:
            self.estimator.update(_from_all_ranks(x.index_select(0, indices)))
        self.skip()
        return indices, log_density

    def skip(self) -> None:
        """Let an iteration pass without looking at its batch."""
        self.step.add_(1)
        self._step += 1

    def _score(self, features: Tensor, log_density: Tensor | None) -> Tensor:
        """(N,) whose lowest entries stay; an image without a density never ranks before others."""
        seed = (self.seed * 1_000_003 + self._step) % 2**63
        generator = torch.Generator(features.device).manual_seed(seed)
        if log_density is None:
            return torch.rand(len(features), generator=generator, device=features.device)
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
            f'min_keep={self.quota.min_keep}, seed={self.seed}'
        )


def _from_all_ranks(x: Tensor) -> Tensor:
    """(K, D) of this process -> (world_size * K, D), the same on every process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    gathered = x.new_empty(dist.get_world_size() * len(x), x.shape[1])
    dist.all_gather_into_tensor(gathered, x.contiguous())
    return gathered
