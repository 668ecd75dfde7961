"""SeTa (Zhou et al., CVPR 2025): a random part, of which a window slides from easy to hard."""

from __future__ import annotations

from collections.abc import Sized

import torch
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor

from ..core.checks import check_integer, check_number
from .lengths import Share, mean_share
from .score_sampler import ScoreSampler

NUM_GROUPS, WINDOW, DELTA = 5, 0.6, 0.875
# Places in a sorted row of losses where a group may end.
_NUM_PLACES = 512


def difficulty_groups(losses: Tensor, num_groups: int) -> tuple[Tensor, ...]:
    """k-means of single numbers: the least sum of squared distances to the mean of the own group.

    Groups of single numbers are pieces of the sorted row. Dynamic programming finds the best way to
    cut it: at any place for up to 512 numbers, else at one of 512 evenly spread places. Nothing is
    drawn at random; the release starts scikit-learn's k-means at random.

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


def window_of_groups(
    scores: Tensor,
    epoch: int,
    prune_ratio: float,
    num_groups: int,
    window: float,
    annealing: bool,
    generator: torch.Generator,
) -> Tensor:
    """Who is trained on in an epoch.

    Args:
        scores: (N,), last known loss of each sample; NaN for one never seen, which is as hard as
            the hardest that was.
        epoch: counted from 0; the first has no window.
        prune_ratio: share of the samples that is left out at random, in [0, 1).
        num_groups: k of :func:`difficulty_groups`.
        window: share of the groups that is trained on, in (0, 1].
        annealing: whether the epoch is one of the last, which have no window either.
        generator: of the draws.

    Returns:
        (K,) int64 indices in random order, K >= 1.
    """
    num_drawn = max(1, int((1 - prune_ratio) * len(scores)))
    drawn = torch.randperm(len(scores), generator=generator)[:num_drawn]
    seen = scores[~scores.isnan()]
    if epoch == 0 or annealing or not len(seen):
        return drawn
    losses = scores[drawn].nan_to_num(nan=float(seen.max()))
    groups = difficulty_groups(losses, num_groups)
    width = num_in_window(len(groups), window)
    start = epoch % (len(groups) - width + 1)
    chosen = torch.cat(groups[start : start + width])
    return drawn[chosen[torch.randperm(len(chosen), generator=generator)]]


def num_in_window(num_groups: int, window: float) -> int:
    """Groups that the window covers: rounded to the nearest, a half to the even; at least 1."""
    return max(1, round(num_groups * window))


def is_annealing(epoch: int, num_epochs: float, delta: float) -> bool:
    """Whether an epoch, counted from 0, is one of the last: it does not end by ``delta``."""
    return epoch + 1 > delta * num_epochs


def expected_share(prune_ratio: float, window: float) -> Share:
    """Share of the data set that an epoch is expected to train on, were all groups of one size.

    They are not: how large the window is in samples depends on the losses.
    """

    def share(epoch: int, num_epochs: float) -> float:
        whole = epoch == 0 or is_annealing(epoch, num_epochs, DELTA)
        return (1 - prune_ratio) * (
            1.0 if whole else num_in_window(NUM_GROUPS, window) / NUM_GROUPS
        )

    return share


def ratio_and_window(prune_ratio: float, num_epochs: float) -> tuple[float, float]:
    """The random ratio and the window that together leave out ``prune_ratio`` of a whole run.

    That is what is expected, see :func:`expected_share`. The window is that of the release for
    ImageNet, 0.6, and wider only where that leaves out too much already; the rest is left out at
    random.
    """
    for width in range(num_in_window(NUM_GROUPS, WINDOW), NUM_GROUPS + 1):
        window = width / NUM_GROUPS
        unpruned = mean_share(num_epochs, expected_share(0.0, window))
        if unpruned >= 1 - prune_ratio:
            break
    return max(0.0, 1 - (1 - prune_ratio) / unpruned), window


@DATA_SAMPLERS.register_module()
class SeTaSampler(ScoreSampler):
    """A ScoreSampler whose epochs :func:`window_of_groups` draws.

    The window moves on by one group an epoch, from easy to hard, and begins anew: several times a
    run. The last epochs are for annealing and have the random part alone. Losses are not weighted.

    Only the summary of the paper could be read; details are those of its release: the first epoch
    has no window and the second begins at the second group, the last epochs are those that do not
    end by ``delta``, and the window's width is rounded. The release starts with a loss of 3 for
    every sample; a segmentor's losses have another scale, so here a sample that was never trained
    on is as hard as the hardest that was. The defaults are those of its ImageNet script; its CIFAR
    script has prune_ratio 0.1 and window 0.9.

    Args:
        dataset: anything with a length.
        prune_ratio: share of the samples that each epoch leaves out at random, in [0, 1).
        num_groups: groups of samples by loss, at least 1.
        window: share of the groups that an epoch trains on, in (0, 1].
        delta: share of the run in which there is a window, in [0, 1].
        seed: see ScoreSampler.

    Raises:
        TypeError, ValueError: an argument is outside its range.
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
        annealing = is_annealing(epoch, self.num_epochs, self.delta)
        options = (self.prune_ratio, self.num_groups, self.window)
        return window_of_groups(self.scores, epoch, *options, annealing, generator), None

    def __str__(self) -> str:
        width = num_in_window(self.num_groups, self.window)
        return (
            f'SeTa: an epoch leaves out {self.prune_ratio:.1%} of the samples at random and trains '
            f'on {width} of {self.num_groups} groups of the others, a window that slides from easy '
            f'to hard; the first epoch and those after {self.delta:.1%} of the run have no window'
        )
