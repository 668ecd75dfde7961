"""OrderDP (Jin et al., ICLR 2026): the highest last-seen losses of a random pool."""

from __future__ import annotations

import math
from collections.abc import Sized

import torch
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor

from ..core.checks import check_number
from .score_sampler import ScoreSampler

POOL, SHARE = 0.75, 0.85


def hardest_of_a_pool(
    scores: Tensor, pool: float, share: float, generator: torch.Generator
) -> Tensor:
    """Who is trained on in an epoch.

    Args:
        scores: (N,), last known loss of each sample; NaN for one never seen, which is harder than
            any that was.
        pool: share of the samples that is drawn at random, without replacement.
        share: of these, those with the highest scores; among equals at random.
        generator: of the draws.

    Returns:
        (K,) int64 indices in random order, K = :func:`num_kept`.
    """
    num_pool = max(1, int(pool * len(scores)))
    drawn = torch.randperm(len(scores), generator=generator)[:num_pool]
    hardness = scores[drawn].nan_to_num(nan=float('inf'))
    # Stable: equals stay in the random order of the pool, so that chance decides between them.
    hardest = hardness.argsort(descending=True, stable=True)[: num_kept(len(scores), pool, share)]
    return drawn[hardest[torch.randperm(len(hardest), generator=generator)]]


def num_kept(size: int, pool: float, share: float) -> int:
    """Samples of an epoch: both shares are rounded down, as in the release; at least 1."""
    return max(1, int(share * max(1, int(pool * size))))


def pool_and_share(prune_ratio: float) -> tuple[float, float]:
    """A pool and a share whose product is ``1 - prune_ratio``, in [0, 1).

    What the two leave out is shared between them as in the published 0.75 and 0.85: at the ratio
    that these have together, 36.25 %, they are what comes out.
    """
    weight = math.log(POOL) / math.log(POOL * SHARE)
    pool = (1 - prune_ratio) ** weight
    return pool, (1 - prune_ratio) / pool


@DATA_SAMPLERS.register_module()
class OrderDPSampler(ScoreSampler):
    """A ScoreSampler whose epochs :func:`hardest_of_a_pool` draws, from the first to the last.

    Losses are not weighted. Only the summary of the paper could be read; details are those of its
    release: both shares are rounded down, the first epoch is pruned like the others, pruning goes
    on to the end of the run, and a sample's score is the loss of its last training pass. A sample
    that was never trained on has a loss of 3 (CIFAR) or 1 (ImageNet) there; a segmentor's losses
    have another scale, so here it is harder than any that was.

    Args:
        dataset: anything with a length.
        pool: share of the data set that an epoch draws at random, in (0, 1].
        share: of the pool that is trained on, in (0, 1].
        seed: see ScoreSampler.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(
        self, dataset: Sized, pool: float = POOL, share: float = SHARE, seed: int | None = None
    ) -> None:
        check_number('pool', pool, 0, 1, open_low=True)
        check_number('share', share, 0, 1, open_low=True)
        super().__init__(dataset, seed)
        self.pool = pool
        self.share = share

    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return hardest_of_a_pool(self.scores, self.pool, self.share, generator), None

    def __str__(self) -> str:
        return (
            f'OrderDP: an epoch trains on the {self.share:.1%} with the highest last-seen losses '
            f'of {self.pool:.1%} of the samples, drawn at random'
        )
