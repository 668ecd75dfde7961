"""Clusters of the retained samples, and how they follow them: Eq. 7–9."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from .density import distances, widest_float

SCHEMA = 1  # of the packed state; to be raised when that changes
_FOREVER = 2**62  # updates
_REVIEW = 16  # updates; a search for idle centroids in each one would cost a third of it


def nearest(rows: Tensor, points: Tensor) -> Tensor:
    """Eq. 7: rows (K, D), points (P, D) -> (K,) the nearest point; of equally near ones the
    first."""
    return distances(rows, points).argmin(dim=1)


def moved(points: Tensor, counts: Tensor, received: Tensor, momentum: float, out: Tensor) -> Tensor:
    r"""Eq. 8 as a weighted mean: of each centroid and its new samples, over the sum of the weights.

    The paper divides by :math:`n_j^t`. Its weights, :math:`\beta n_j^{t-1}` for the centroid and
    :math:`1 - \beta` for each sample, sum to less, so that read literally every update would draw
    the centroids towards zero, until all of them coincide there.

    Args:
        points: (N_C, D + 1), the centroids :math:`c_j^t`, with a one behind each.
        counts: (N_C, 1), :math:`n_j^{t-1}`.
        received: (N_C, D + 1), the sum of the samples in :math:`A_j^t`, and behind it their number.
        momentum: :math:`\beta`, in [0, 1).
        out: (N_C, D), becomes :math:`c_j^{t+1}`. A centroid that received nothing stays.
    """
    # All weights are divided by 1 - beta. The last column becomes their sum.
    ratio = max(momentum / (1 - momentum), _epsilon(points.dtype))
    total = torch.addcmul(received, counts, points, value=ratio)
    return torch.div(total[:, :-1], total[:, -1:], out=out)


def log_weights(counts: Tensor) -> Tensor:
    """Eq. 9: counts (N_C, 1) -> (N_C,), log of each cluster's share of all retained samples; all
    the same as long as there are none."""
    log_counts = counts[:, 0].log()
    # An empty cluster weighs nothing. The log of that has to be finite, since all may be empty.
    least = torch.finfo(log_counts.dtype).min / 2
    return F.threshold_(log_counts, -1, least).log_softmax(dim=0)


class Clusters:
    """N_C centroids of length D, how many samples each received, and when it received the last one.

    Attributes:
        centroids: (N_C, D) float32.
        points: (N_C, D + 1), the same with a one behind each, in float64 where there is one.
        sizes: (N_C, 1), how many samples each has received, in the same type; an epsilon instead of
            zero, so that one can divide by it.
        num_seeded: how many centroids have been placed. Counted by the host.
        num_updates: how many updates there were since. Counted by the host.
    """

    def __init__(self, num: int, dim: int, device: torch.device) -> None:
        wide = widest_float(device.type)
        self.centroids = torch.zeros(num, dim, dtype=torch.float32, device=device)
        self.sizes = torch.full((num, 1), _epsilon(wide), dtype=wide, device=device)
        self.num_seeded = self.num_updates = 0
        # Place 0 is infinitely far away, for rows that are not finite; the centroids come after it.
        self._places = torch.arange(1, num + 1, device=device)[:, None]
        self._points = torch.ones(num + 1, dim + 1, dtype=wide, device=device)
        self._points[0] = torch.inf
        # The last update that had a sample for each of these places.
        self._last = torch.zeros(num + 1, dtype=torch.int64, device=device)
        self._settle()

    @property
    def points(self) -> Tensor:
        return self._points[1:]

    @property
    def counts(self) -> Tensor:
        return self.sizes[:, 0].long()

    @property
    def idle(self) -> Tensor:
        return self.num_updates - self._last[1:]

    def _settle(self) -> None:
        self.points[:, :-1] = self.centroids

    def _mark_empty(self) -> None:
        self.sizes.clamp_(min=_epsilon(self.sizes.dtype))

    def seed(self, x: Tensor) -> None:
        """Make the (K, D) rows the next K centroids.

        A row with a NaN or Inf, which the host cannot see, leaves an empty cluster at the mean of
        the others, to be moved by a later update.
        """
        first, last = self.num_seeded, self.num_seeded + len(x)
        finite = _finite(x)
        x = x.nan_to_num(0, 0, 0)
        mean = (x * finite[:, None]).sum(dim=0) / finite.sum().clamp(min=1)
        self.centroids[first:last] = torch.where(finite[:, None], x, mean)
        self.sizes[first:last, 0] = finite
        self._mark_empty()
        never = self.num_updates - _FOREVER
        self._last[1 + first : 1 + last] = torch.where(finite, self.num_updates, never)
        self.num_seeded = last
        self._settle()

    def follow(self, x: Tensor, momentum: float, revive_after: int | None) -> None:
        """Let the centroids follow the (K, D) float32 rows of an update, K >= 1; those with a NaN
        or Inf do not count. The options are those of :class:`AdaptiveDensityEstimator`."""
        patience = _FOREVER if revive_after is None else revive_after
        review = min(_REVIEW, max(1, patience // 6))
        if self.num_updates % review == 0:
            self._revive(x, math.ceil(review * len(self.centroids) / patience), patience)
        self.num_updates += 1
        # A one behind each row counts the rows where they are added up. A row that is not finite
        # becomes so large that place 0 is as near to it as any centroid.
        rows = self._points.new_ones(len(x), self._points.shape[1])
        rows[:, :-1] = x
        far = torch.finfo(rows.dtype).max
        rows.nan_to_num_(far, far, far)
        # Autocast leaves float64 alone, and would cast products of float32.
        wide = rows.dtype == torch.float64
        with nullcontext() if wide else torch.autocast(rows.device.type, enabled=False):
            joined = nearest(rows, self._points)  # Eq. 7
            # A product with the one-hot assignment instead of index_add_: its result does not
            # depend on the order of threads, so every rank holds the same bits.
            one_hot = rows.new_empty(len(self.centroids), len(rows))
            received = torch.eq(self._places, joined, out=one_hot) @ rows
        moved(self.points, self.sizes, received, momentum, out=self.centroids)  # Eq. 8
        self.sizes.add_(received[:, -1:])  # n_j of Eq. 8 and 9
        self._last.index_fill_(0, joined, self.num_updates)
        self._settle()

    def _revive(self, x: Tensor, num: int, patience: int) -> None:
        """Move those of the ``num`` longest idle centroids whose last sample came ``patience``
        updates ago or earlier to the first rows. Their counts go to their nearest neighbours."""
        num = min(num, len(x), len(self.centroids))
        x = x[:num]
        last, oldest = self._last[1:].sort(stable=True)
        oldest = oldest[:num]
        dead = ((last[:num] <= self.num_updates - patience) & _finite(x))[:, None]
        centroids = self.points[:, :-1]
        old = centroids.index_select(0, oldest)
        if num < len(self.centroids):
            apart = distances(old, centroids).index_fill_(1, oldest, torch.inf)
            inherited = self.sizes.index_select(0, oldest) * dead
            self.sizes.index_add_(0, apart.argmin(dim=1), inherited)
            self.sizes.index_add_(0, oldest, inherited, alpha=-1)
            self._mark_empty()
        centroids.index_copy_(0, oldest, torch.where(dead, x, old))

    def pack(self) -> Tensor:
        """The state, bit for bit, as (N_C + 1, D + 2) int64, which nobody averages or casts: a row
        with the numbers of seeded centroids and of updates and the :data:`SCHEMA`; then one for
        each centroid with its count, its idle updates and the bits of its coordinates."""
        num, dim = self.centroids.shape
        state = self._last.new_zeros(num + 1, dim + 2)
        state[0, 0], state[0, 1], state[0, 2] = self.num_seeded, self.num_updates, SCHEMA
        state[1:, 0], state[1:, 1] = self.counts, self.idle
        state[1:, 2:] = self.centroids.view(torch.int32)
        return state

    @classmethod
    def unpack(cls, state: Tensor, device: torch.device | None = None) -> Clusters:
        """From a packed state of this :data:`SCHEMA`; on ``device``, or where the state is."""
        num_seeded, num_updates = state[0, :2].tolist()
        state = state.to(device)
        clusters = cls(len(state) - 1, state.shape[1] - 2, state.device)
        clusters.num_seeded, clusters.num_updates = num_seeded, num_updates
        clusters.centroids.copy_(state[1:, 2:].to(torch.int32).view(torch.float32))
        clusters.sizes.copy_(state[1:, :1])
        clusters._mark_empty()
        clusters._last[1:] = num_updates - state[1:, 1]
        clusters._settle()
        return clusters


def _epsilon(dtype: torch.dtype) -> float:
    """A count that is none: 1 + epsilon == 1, and epsilon² > 0."""
    return torch.finfo(dtype).tiny ** 0.5


def _finite(x: Tensor) -> Tensor:
    """(len(x),) bool, whether all of a row is finite."""
    return torch.linalg.vector_norm(x, torch.inf, dim=1) < torch.inf
