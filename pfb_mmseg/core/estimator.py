"""Adaptive Distribution Estimation: centroids that stand for the retained samples; how they move.

Eq. 7–9 of the paper. All state lives in buffers, so ``state_dict`` carries it; every operation
stays on the device, so an update never makes the host wait.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from .checks import check_bool, check_choice, check_integer, check_number
from .density import BANDWIDTHS, bandwidth, log_density


def _normalized(old: Tensor, old_n: Tensor, new_sum: Tensor, new_n: Tensor, beta: float) -> Tensor:
    """Eq. 8 divided by the sum of its own weights; a cluster that received nothing stays."""
    old_n = beta * old_n
    total = old_n + (1 - beta) * new_n
    return torch.where(new_n > 0, (old_n * old + (1 - beta) * new_sum) / total, old)


def _literal(old: Tensor, old_n: Tensor, new_sum: Tensor, new_n: Tensor, beta: float) -> Tensor:
    """Eq. 8 as printed. Its weights do not sum to one, so the centroids shrink towards zero."""
    total = old_n + new_n
    return torch.where(total > 0, (beta * old_n * old + (1 - beta) * new_sum) / total, old)


def _mean(old: Tensor, old_n: Tensor, new_sum: Tensor, new_n: Tensor, beta: float) -> Tensor:
    """The mean of all samples that a cluster ever received; ``beta`` has no part in it."""
    return torch.where(new_n > 0, (old_n * old + new_sum) / (old_n + new_n), old)


_FOREVER = 2**62  # updates; room is left to count on
_REVIEW = 4  # updates; looking for idle centroids in each one would cost a third of it

UPDATE_RULES = {'normalized': _normalized, 'literal': _literal, 'mean': _mean}


class AdaptiveDensityEstimator(nn.Module):
    r"""Density of the retained samples' representations, kept as ``num_centroids`` kernels.

    The first ``num_centroids`` rows that :meth:`update` sees become the centroids; from then on
    each row joins its nearest centroid (Eq. 7), the centroids follow their rows (Eq. 8) and the
    counts become kernel weights (Eq. 9).

    Args:
        num_centroids: :math:`N_C`, at least 1 (paper: 64).
        dim: :math:`D`, length of a representation, at least 1 (paper: 128).
        bandwidth: ``'silverman'`` (Eq. 6), ``'scott'`` or ``'identity'`` (Table S2).
        weighted: use the counts as kernel weights (Eq. 9); False sets :math:`w_j = 1` (Table S1).
        momentum: :math:`\beta` of Eq. 8, in [0, 1). The paper has 0.01, see README.md here.
        update_rule: ``'normalized'`` divides Eq. 8 by the sum of its own weights and leaves
            clusters that received nothing alone; ``'literal'`` is Eq. 8 as printed, which
            collapses; ``'mean'`` is the running mean.
        revive_after: a centroid that has received nothing for this many updates moves, within the
            next few, to a row of the current update; the samples it stood for are counted with
            its nearest neighbour. None revives only centroids that never received any (the
            paper's behaviour: there are none as long as all representations are finite).

    Attributes:
        centroids: (N_C, D) float32. counts: (N_C,) int64, samples assigned so far. Buffers.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    centroids: Tensor
    counts: Tensor
    idle: Tensor
    num_seeded: Tensor
    num_updates: Tensor

    def __init__(
        self,
        num_centroids: int = 64,
        dim: int | None = 128,
        bandwidth: str = 'silverman',
        weighted: bool = True,
        momentum: float = 0.1,
        update_rule: str = 'normalized',
        revive_after: int | None = 100,
    ) -> None:
        super().__init__()
        check_integer('num_centroids', num_centroids, low=1)
        if dim is not None:
            check_integer('dim', dim, low=1)
        check_choice('bandwidth', bandwidth, BANDWIDTHS)
        check_bool('weighted', weighted)
        check_number('momentum', momentum, 0, 1, open_high=True)
        check_choice('update_rule', update_rule, UPDATE_RULES)
        if revive_after is not None:
            check_integer('revive_after', revive_after, low=1)
        self.num_centroids = num_centroids
        self.dim = dim
        self.bandwidth = bandwidth
        self.weighted = weighted
        self.momentum = momentum
        self.update_rule = update_rule
        self.revive_after = revive_after
        self.register_buffer('centroids', torch.zeros(num_centroids, dim or 0))
        self.register_buffer('counts', torch.zeros(num_centroids, dtype=torch.int64))
        self.register_buffer('idle', torch.zeros(num_centroids, dtype=torch.int64))
        self.register_buffer('num_seeded', torch.zeros((), dtype=torch.int64))
        self.register_buffer('num_updates', torch.zeros((), dtype=torch.int64))
        # Both are known on the host: the buffers are for checkpoints only.
        self._seeded = 0
        self._updates = 0

    def resolve_dim(self, num_channels: int) -> None:
        """Settle D for features of so many channels.

        Raises:
            ValueError: ``dim`` is more than the number of channels.
        """
        if self.dim is None:
            self.dim = min(128, num_channels)
            self.centroids = self.centroids.new_zeros(self.num_centroids, self.dim)
        if self.dim > num_channels:
            raise ValueError(
                f'estimator dim={self.dim} is more than the {num_channels} channels at the '
                f'blocking point; set estimator=dict(dim={num_channels}) or less, or leave dim out'
            )

    @property
    def ready(self) -> bool:
        """Whether every centroid is seeded. A Python bool; reading it costs no synchronisation."""
        return self._seeded == self.num_centroids

    @property
    def weights(self) -> Tensor:
        """(N_C,) float64, each cluster's share of all retained samples (Eq. 9); sums to one."""
        return self.counts.double() / self.counts.sum().clamp(min=1)

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Tensor:
        """Natural log of the estimated density (Eq. 4–6) at each row.

        Args:
            x: (N, dim) representations.

        Returns:
            (N,) float32; finite for finite rows, NaN for rows with a NaN or Inf.

        Raises:
            ValueError: ``x`` has another shape.
        """
        self._check(x)
        weights = self.weights if self.weighted else torch.ones_like(self.weights)
        return log_density(x, self.centroids, weights, bandwidth(self.centroids, self.bandwidth))

    @torch.inference_mode()  # nothing leaves it, and its many small calls cost less
    def update(self, x: Tensor) -> None:
        """Account for retained samples: seed what is not seeded yet, then Eq. 7–9.

        Args:
            x: (K, dim) representations, K >= 0. Rows with a NaN or Inf never reach a centroid.

        Raises:
            ValueError: ``x`` has another shape.
        """
        self._check(x)
        x = x.to(self.centroids.dtype)
        finite = x.sum(dim=1, dtype=torch.float64).isfinite()
        x = x.nan_to_num(0, 0, 0)
        num_new = min(len(x), self.num_centroids - self._seeded)
        if num_new:
            self._seed(x[:num_new], finite[:num_new])
        if len(x) > num_new:
            self._follow(x[num_new:], finite[num_new:])

    def _seed(self, x: Tensor, finite: Tensor) -> None:
        first, last = self._seeded, self._seeded + len(x)
        # A non-finite row still uses up its place (the host counts rows, only the device sees
        # values): an empty cluster at the mean of the others, which a later update refills.
        mean = (x * finite[:, None]).sum(dim=0) / finite.sum().clamp(min=1)
        self.centroids[first:last] = torch.where(finite[:, None], x, mean)
        self.counts[first:last] = finite.long()
        self.idle[first:last] = torch.where(finite, 0, _FOREVER)
        self.num_seeded.fill_(last)
        self._seeded = last

    def _follow(self, x: Tensor, finite: Tensor) -> None:
        if self._updates % _REVIEW == 0:
            self._revive(x, finite)
        self.num_updates.add_(1)
        self._updates += 1
        x, centroids = x.double(), self.centroids.double()
        nearest = _distances(x, centroids).argmin(dim=1)  # Eq. 7
        # A product with the one-hot assignment instead of index_add_: its result does not depend
        # on the order of threads, so every rank holds the same bits.
        assigned = x.new_zeros(self.num_centroids, len(x))
        assigned.scatter_(0, nearest[None], finite[None].double())
        received = assigned.sum(dim=1, keepdim=True)
        rule = UPDATE_RULES[self.update_rule]  # Eq. 8
        counts = self.counts.double()[:, None]
        self.centroids.copy_(rule(centroids, counts, assigned @ x, received, self.momentum))
        self.counts.add_(received[:, 0].long())  # n_j of Eq. 8, numerator of Eq. 9
        self.idle.add_(1).mul_(received[:, 0] == 0)

    def _revive(self, x: Tensor, finite: Tensor) -> None:
        """Move empty and long idle centroids to the first rows, at most a few in one update.

        As many as it takes for each centroid to have had its turn within ``revive_after`` updates.
        """
        patience = _FOREVER if self.revive_after is None else self.revive_after
        turns = math.ceil(_REVIEW * self.num_centroids / patience)
        places = min(len(x), turns, self.num_centroids)
        slots = self.idle.argsort(descending=True, stable=True)[:places]
        dead = (self.idle[slots] >= patience) & finite[:places]
        old = self.centroids[slots]
        heirs = _distances(old, self.centroids).index_fill_(1, slots, torch.inf).argmin(dim=1)
        inherited = self.counts[slots] * dead
        if self.num_centroids > places:
            self.counts.index_add_(0, heirs, inherited)
            self.counts.index_add_(0, slots, inherited, alpha=-1)
        self.centroids.index_copy_(0, slots, torch.where(dead[:, None], x[:places], old))

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f'expected representations of shape (N, {self.dim}), got {tuple(x.shape)}; '
                f'the estimator was built with dim={self.dim}'
            )

    def num_active(self, window: int = 200) -> Tensor:
        """() int64 on the device: centroids with a sample in the last ``window`` updates."""
        return ((self.idle < window) & (self.counts > 0)).sum()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        stored = state_dict.get(f'{prefix}centroids')
        if stored is not None and self.dim is None:
            self.resolve_dim(stored.shape[1])
        if stored is None or stored.shape != self.centroids.shape:
            found = 'none' if stored is None else f'one of shape {tuple(stored.shape)}'
            warnings.warn(
                f'expected a density estimate of shape {tuple(self.centroids.shape)} in the '
                f'checkpoint, found {found}: the estimate starts afresh, all other weights are '
                'loaded',
                stacklevel=2,
            )
            for name in ('centroids', 'counts', 'idle', 'num_seeded', 'num_updates'):
                state_dict.pop(f'{prefix}{name}', None)
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._seeded = int(self.num_seeded)
        self._updates = int(self.num_updates)

    def extra_repr(self) -> str:
        return (
            f'num_centroids={self.num_centroids}, dim={self.dim}, bandwidth={self.bandwidth!r}, '
            f'weighted={self.weighted}, momentum={self.momentum}, '
            f'update_rule={self.update_rule!r}, revive_after={self.revive_after}'
        )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(len(a), len(b)) Euclidean, from differences: a large common offset costs no precision."""
    return torch.cdist(a, b, compute_mode='donot_use_mm_for_euclid_dist')
