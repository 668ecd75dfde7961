"""InfoBatch (Qin et al., ICLR 2024): leaves out images of low loss, and counts the others more."""

from __future__ import annotations

from collections.abc import Sized

import torch
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor

from ..core.checks import check_number
from .lengths import Share
from .score_sampler import ScoreSampler


def prune_epoch(
    scores: Tensor, prune_ratio: float, percentile: float | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Who is trained on in an epoch, and with which weight (Eq. 3 and Sec. 3.2).

    Of the samples below the threshold a share of ``prune_ratio`` is left out at random, and the
    others of them count 1 / (1 - prune_ratio) times, so that the expected sum of the weighted
    gradients is that of all samples.

    Args:
        scores: (N,), last known loss of each sample; NaN for one never seen, which is not pruned.
        prune_ratio: r, in [0, 1).
        percentile: the threshold, in [0, 100]; None is the mean of the scores.
        generator: of the draws.

    Returns:
        (K,) int64 indices in random order, and (K,) float64 weights.
    """
    known = scores[~scores.isnan()].double()
    below = torch.zeros(len(scores), dtype=torch.bool)
    if len(known):
        threshold = known.mean() if percentile is None else known.quantile(percentile / 100)
        below = scores < threshold
    candidates = below.nonzero().flatten()
    # Rounded up or down at random: the expectation is exact, for few samples too.
    rounding = torch.rand((), generator=generator, dtype=torch.float64)
    num_dropped = int(prune_ratio * len(candidates) + rounding)
    shuffled = candidates[torch.randperm(len(candidates), generator=generator)]
    weights = torch.ones(len(scores), dtype=torch.float64)
    weights[candidates] = 1 / (1 - prune_ratio)
    stay = torch.ones(len(scores), dtype=torch.bool)
    stay[shuffled[:num_dropped]] = False
    indices = stay.nonzero().flatten()
    indices = indices[torch.randperm(len(indices), generator=generator)]
    return indices, weights[indices]


def expected_share(prune_ratio: float, below: float, delta: float = 0.875) -> Share:
    """Share of the data set that an epoch is expected to train on.

    The first epoch has no scores yet and prunes nothing; nor do those from ``delta`` on.

    Args:
        prune_ratio: r, in [0, 1).
        below: expected share of the samples below the threshold: 0.95 for the 95th percentile;
            for the mean it depends on the losses, and a half is what a symmetric distribution has.
        delta: share of the epochs in which samples may be pruned.
    """

    def share(epoch: int, num_epochs: float) -> float:
        return 1 - prune_ratio * below if 0 < epoch < delta * num_epochs else 1.0

    return share


@DATA_SAMPLERS.register_module()
class InfoBatchSampler(ScoreSampler):
    """A ScoreSampler whose epochs :func:`prune_epoch` draws.

    Args:
        dataset: anything with a length.
        prune_ratio: r, in [0, 1), share of the samples below the threshold that is left out.
        percentile: the threshold; None is the mean of the scores (InfoBatch*), 95 makes nearly all
            samples candidates, so that r is the actual pruning ratio (InfoBatch†).
        delta: share of the epochs in which samples may be pruned, in [0, 1] (paper: 0.875). The
            first is never pruned, nor is an epoch that begins after this share of the run.
        seed: see ScoreSampler.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        dataset: Sized,
        prune_ratio: float = 0.5,
        percentile: float | None = None,
        delta: float = 0.875,
        seed: int | None = None,
    ) -> None:
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
        if percentile is not None:
            check_number('percentile', percentile, 0, 100)
        check_number('delta', delta, 0, 1)
        super().__init__(dataset, seed)
        self.prune_ratio = prune_ratio
        self.percentile = percentile
        self.delta = delta

    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ratio = self.prune_ratio if epoch < self.delta * self.num_epochs else 0.0
        return prune_epoch(self.scores, ratio, self.percentile, generator)

    def __str__(self) -> str:
        threshold = 'mean' if self.percentile is None else f'{self.percentile:g}th percentile'
        return (
            f'InfoBatch: {self.prune_ratio:.0%} of the samples with a loss below the {threshold} '
            f'are left out of the epochs after the first and before {self.delta:.1%} of the run'
        )
