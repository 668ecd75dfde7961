"""Published methods that choose what an epoch loads, each a ScoreSampler: a random part drawn once,
InfoBatch, OrderDP and SeTa."""

from __future__ import annotations

import math
from collections.abc import Sized

import torch
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor

from ..core.checks import check_integer, check_number
from ..core.draws import generator_of
from .score_sampler import ScoreSampler

# The shares of OrderDP, and the groups of SeTa for ImageNet, in their releases.
POOL, SHARE = 0.75, 0.85
NUM_GROUPS, WINDOW = 5, 0.6
# Share of a run in which samples are chosen: InfoBatch, SeTa.
DELTA = 0.875
# Places in a sorted row of losses where a group may end.
_NUM_PLACES = 512


@DATA_SAMPLERS.register_module()
class FixedPartSampler(ScoreSampler):
    """All epochs are the same random part of the data, in a new order; no score is looked at.

    "Single-shot random pruning" in Tables 1 and 2 of the PFB paper.

    Args:
        dataset: anything with a length.
        prune_ratio: share of the data set that is left out of the whole run, in [0, 1).
        seed: see ScoreSampler.
    """

    def __init__(self, dataset: Sized, prune_ratio: float = 0.5, seed: int | None = None) -> None:
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
        super().__init__(dataset, seed)
        self.prune_ratio = prune_ratio

    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, None]:
        once = generator_of(self.seed, -1)  # the turn before the first epoch
        num_kept = max(1, round((1 - self.prune_ratio) * self.size))
        return shuffled(torch.randperm(self.size, generator=once)[:num_kept], generator), None


@DATA_SAMPLERS.register_module()
class InfoBatchSampler(ScoreSampler):
    """InfoBatch (Qin et al., ICLR 2024): leaves out samples of low loss, and counts others more.

    Of the samples whose loss is below the threshold a share of ``prune_ratio`` is left out at
    random, and the others of them count 1 / (1 - prune_ratio) times, so that the expected sum of
    the weighted gradients is that of all samples (Eq. 3 and Sec. 3.2). A sample never seen stays.

    Args:
        dataset: anything with a length.
        prune_ratio: r, in [0, 1), share of the samples below the threshold that is left out.
        percentile: the threshold; None is the mean of the scores (InfoBatch*), 95 makes nearly all
            samples candidates, so that r is the actual pruning ratio (InfoBatch†).
        delta: share of the epochs in which samples may be pruned, in [0, 1] (paper: 0.875). The
            first is never pruned, nor is an epoch that begins after this share of the run.
        seed: see ScoreSampler.
    """

    def __init__(
        self,
        dataset: Sized,
        prune_ratio: float = 0.5,
        percentile: float | None = None,
        delta: float = DELTA,
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
        known = self.scores[~self.scores.isnan()].double()
        below = torch.zeros(self.size, dtype=torch.bool)
        if len(known):
            mean = self.percentile is None
            below = self.scores < (known.mean() if mean else known.quantile(self.percentile / 100))
        candidates = below.nonzero().flatten()
        # Rounded up or down at random: the expectation is exact, for few samples too.
        rounding = torch.rand((), generator=generator, dtype=torch.float64)
        num_dropped = int(ratio * len(candidates) + rounding)
        weights = torch.ones(self.size, dtype=torch.float64)
        weights[candidates] = 1 / (1 - ratio)
        stay = torch.ones(self.size, dtype=torch.bool)
        stay[shuffled(candidates, generator)[:num_dropped]] = False
        indices = shuffled(stay.nonzero().flatten(), generator)
        return indices, weights[indices]


@DATA_SAMPLERS.register_module()
class OrderDPSampler(ScoreSampler):
    """OrderDP (Jin et al., ICLR 2026): the highest last-seen losses of a random pool.

    Losses are not weighted. Only the summary of the paper could be read; details are those of its
    release: both shares are rounded down, all epochs are pruned from the first to the last, and a
    sample's score is the loss of its last training pass. A sample that was never trained on has a
    loss of 3 (CIFAR) or 1 (ImageNet) there; a segmentor's losses have another scale, so here it is
    harder than any that was. Among equals chance decides.

    Args:
        dataset: anything with a length.
        pool: share of the data set that an epoch draws at random, in (0, 1].
        share: of the pool that is trained on, in (0, 1].
        seed: see ScoreSampler.
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
        num_pool = max(1, int(self.pool * self.size))
        drawn = torch.randperm(self.size, generator=generator)[:num_pool]
        hardness = self.scores[drawn].nan_to_num(nan=float('inf'))
        # Stable: equals stay in the random order of the pool.
        hardest = hardness.argsort(descending=True, stable=True)
        return shuffled(drawn[hardest[: max(1, int(self.share * num_pool))]], generator), None


def pool_and_share(prune_ratio: float) -> tuple[float, float]:
    """OrderDP's pool and share whose product is ``1 - prune_ratio``, in [0, 1).

    What the two leave out is shared between them as in the published 0.75 and 0.85: at the ratio
    that these have together, 36.25 %, they are what comes out.
    """
    weight = math.log(POOL) / math.log(POOL * SHARE)
    pool = (1 - prune_ratio) ** weight
    return pool, (1 - prune_ratio) / pool


@DATA_SAMPLERS.register_module()
class SeTaSampler(ScoreSampler):
    """SeTa (Zhou et al., CVPR 2025): a random part, of which a window slides from easy to hard.

    The part is grouped by loss, and the window moves on by one group an epoch and begins anew. The
    last epochs are for annealing and have the random part alone. Losses are not weighted.

    Only the summary of the paper could be read; details are those of its release: the first epoch
    has no window and the second begins at the second group, the last epochs are those that do not
    end by ``delta``, and the window's width is rounded, a half to the even. The release starts with
    a loss of 3 for every sample; a segmentor's losses have another scale, so here a sample that was
    never trained on is as hard as the hardest that was. The defaults are those of its ImageNet
    script; its CIFAR script has prune_ratio 0.1 and window 0.9.

    Args:
        dataset: anything with a length.
        prune_ratio: share of the samples that each epoch leaves out at random, in [0, 1).
        num_groups: groups of samples by loss, at least 1.
        window: share of the groups that an epoch trains on, in (0, 1].
        delta: share of the run in which there is a window, in [0, 1].
        seed: see ScoreSampler.
    """

    def __init__(
        self,
        dataset: Sized,
        prune_ratio: float = 0.0,
        num_groups: int = NUM_GROUPS,
        window: float = WINDOW,
        delta: float = DELTA,
        seed: int | None = None,
    ) -> None:
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
        check_integer('num_groups', num_groups, low=1)
        check_number('window', window, 0, 1, open_low=True)
        check_number('delta', delta, 0, 1)
        super().__init__(dataset, seed)
        self.prune_ratio = prune_ratio
        self.num_groups = num_groups
        self.window = window
        self.delta = delta

    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, None]:
        num_drawn = max(1, int((1 - self.prune_ratio) * self.size))
        drawn = torch.randperm(self.size, generator=generator)[:num_drawn]
        seen = self.scores[~self.scores.isnan()]
        if not has_window(epoch, self.num_epochs, self.delta) or not len(seen):
            return drawn, None
        losses = self.scores[drawn].nan_to_num(nan=float(seen.max()))
        groups = difficulty_groups(losses, self.num_groups)
        width = max(1, round(len(groups) * self.window))
        start = epoch % (len(groups) - width + 1)
        return shuffled(drawn[torch.cat(groups[start : start + width])], generator), None


def has_window(epoch: int, num_epochs: float, delta: float = DELTA) -> bool:
    """Whether SeTa looks at the losses in an epoch, counted from 0: it is not the first, and ends
    by ``delta``."""
    return 0 < epoch and epoch + 1 <= delta * num_epochs


def ratio_and_window(prune_ratio: float, num_epochs: float) -> tuple[float, float]:
    """SeTa's random ratio and window that together leave out ``prune_ratio`` of a whole run, were
    all groups of one size; how large the window is in samples depends on the losses.

    The window is that of the release for ImageNet, 0.6, and wider only where that leaves out too
    much already; the rest is left out at random.
    """
    epochs = range(math.ceil(num_epochs))
    windowed = sum(min(1, num_epochs - e) for e in epochs if has_window(e, num_epochs)) / num_epochs
    for width in range(round(NUM_GROUPS * WINDOW), NUM_GROUPS + 1):
        window = width / NUM_GROUPS
        unpruned = 1 - windowed * (1 - window)
        if unpruned >= 1 - prune_ratio:
            break
    return max(0.0, 1 - (1 - prune_ratio) / unpruned), window


def difficulty_groups(losses: Tensor, num_groups: int) -> tuple[Tensor, ...]:
    """k-means of single numbers: the least sum of squared distances to the mean of the own group.

    Groups of single numbers are pieces of the sorted row. Dynamic programming finds the best way to
    cut it: at any place for up to 512 numbers, else at one of 512 evenly spread places. Nothing is
    drawn at random; SeTa's release starts scikit-learn's k-means at random.

    Args:
        losses: (M,) finite, M >= 1.
        num_groups: k; M groups where that is less.

    Returns:
        The positions of each group's losses, int64; the easiest group first, none empty.
    """
    order = losses.argsort()
    ordered = losses[order].double()
    ordered -= ordered.mean()
    num_places = min(_NUM_PLACES, len(ordered))
    places = torch.linspace(0, len(ordered), num_places + 1, dtype=torch.float64).long()

    def between(values: Tensor) -> Tensor:
        """Their sum from place i to place j, in row i and column j."""
        sums = torch.cat([values.new_zeros(1), values.cumsum(0)])[places]
        return sums - sums[:, None]

    length = places - places[:, None]
    spread = between(ordered.square()) - between(ordered).square() / length
    spread = spread.masked_fill(length <= 0, float('inf'))
    least, choices = spread[0], []
    for _ in range(min(num_groups, num_places) - 1):
        least, choice = (least[:, None] + spread).min(dim=0)
        choices.append(choice)
    ends = [num_places]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return order.tensor_split(places[torch.tensor(ends[:0:-1], dtype=torch.long)])


def shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    """In random order."""
    return values[torch.randperm(len(values), generator=generator)]
