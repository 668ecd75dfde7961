"""The paper's criterion: the images of lowest density among those trained on so far stay."""

from __future__ import annotations

import inspect

from torch import Generator, Tensor

from ..candidates import Candidates
from ..checks import check_keys, check_number
from ..criterion import CRITERIA, Criterion
from ..estimator import AdaptiveDensityEstimator
from ..representation import pool_features
from ..selection import LOG_DENSITY, explored_log_density


@CRITERIA.register_module('rare')
class Rare(Criterion):
    """Adaptive Distribution Estimation (Sec. 3.3–3.4, Eq. 1–9).

    Args:
        estimator: the density estimate, or a dict with options of a new one, whose ``dim`` is by
            default 128 or the number of channels, if that is less; None: a new one without any.
        exploration: b of Eq. 3, at least 0.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    score_name = LOG_DENSITY
    keeps = 'those of lowest density'
    sought = -1

    def __init__(
        self,
        estimator: AdaptiveDensityEstimator | dict | None = None,
        exploration: float = 0.01,
    ) -> None:
        super().__init__()
        check_number('exploration', exploration, 0, float('inf'), open_high=True)
        estimator = {} if estimator is None else estimator
        if isinstance(estimator, dict):
            check_keys(
                'estimator', estimator, inspect.signature(AdaptiveDensityEstimator).parameters
            )
            estimator = AdaptiveDensityEstimator(**{'dim': None, **estimator})
        if not isinstance(estimator, AdaptiveDensityEstimator):
            raise TypeError(
                f'estimator={estimator!r}: expected an AdaptiveDensityEstimator, a dict or None, '
                f'got {type(estimator).__name__}'
            )
        self.estimator = estimator
        self.exploration = exploration

    @property
    def ready(self) -> bool:
        """Whether all centroids are seeded."""
        return self.estimator.ready

    def prepare(self, num_channels: int) -> None:
        """Settle D, or raise ValueError if it is more than there are channels."""
        self.estimator.resolve_dim(num_channels)

    def observe(self, candidates: Candidates) -> Tensor:
        """(N, D) pooled features (Sec. 3.4)."""
        features = candidates.features()
        self.estimator.resolve_dim(features.shape[1])
        return pool_features(features, self.estimator.dim)

    def score(self, observation: Tensor) -> Tensor:
        """(N,) natural log of the density (Eq. 4–6)."""
        return self.estimator.log_density(observation)

    def importance(self, score: Tensor, generator: Generator) -> Tensor:
        """Log of Eq. 2, with the random term of Eq. 3; turned round where density is sought."""
        return self.sought * explored_log_density(score, self.exploration, generator)

    def learn(self, observation: Tensor) -> None:
        """Eq. 7–9."""
        self.estimator.update(observation)


@CRITERIA.register_module('common')
class Common(Rare):
    """The reverse of the paper's criterion, a control: the images of highest density stay."""

    keeps = 'those of highest density'
    sought = 1
