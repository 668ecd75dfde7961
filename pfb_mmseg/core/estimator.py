"""Adaptive Distribution Estimation: centroids that stand for the retained samples; how they move.

Eq. 7–9 of the paper. The state is no buffer, since whoever averages or casts a model's buffers
would break it: it travels as the module's extra state. Every operation stays on the device, so an
update never makes the host wait.
"""

from __future__ import annotations

import contextlib
import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_bool, check_choice, check_dim, check_integer, check_number
from .density import BANDWIDTHS, Mixture, distances, spread, spread_factor, widest_float


# Each takes the centroids before the update as rows [c, 1] and how many samples each had, (N_C, 1),
# and what they received as rows [sum of x, number of x]. It says where they go in homogeneous
# coordinates, (N_C, D + 1): the last column is what the others are to be divided by.
def _normalized(old: Tensor, old_n: Tensor, received: Tensor, beta: float) -> Tensor:
    """Eq. 8 divided by the sum of its own weights; a cluster that received nothing stays."""
    return torch.addcmul(received, old_n, old, value=max(beta / (1 - beta), _trace(old.dtype)))


def _literal(old: Tensor, old_n: Tensor, received: Tensor, beta: float) -> Tensor:
    """Eq. 8 as printed. Its weights do not sum to one, so the centroids shrink towards zero."""
    moved = (1 - beta) * _normalized(old, old_n, received, beta)
    moved[:, -1:] = old_n + received[:, -1:]
    return moved


def _mean(old: Tensor, old_n: Tensor, received: Tensor, beta: float) -> Tensor:
    """The mean of all samples that a cluster ever received; ``beta`` has no part in it."""
    return _normalized(old, old_n, received, 0.5)


_FOREVER = 2**62  # updates; room is left to count on
_REVIEW = 16  # updates; looking for idle centroids in each one would cost a third of it

UPDATE_RULES = {'normalized': _normalized, 'literal': _literal, 'mean': _mean}


class AdaptiveDensityEstimator(nn.Module):
    r"""Density of the retained samples' representations, kept as ``num_centroids`` kernels.

    The first ``num_centroids`` rows that :meth:`update` sees become the centroids; from then on
    each row joins its nearest centroid (Eq. 7), the centroids follow their rows (Eq. 8) and the
    counts become kernel weights (Eq. 9).

    Args:
        num_centroids: :math:`N_C`, at least 1 (paper: 64).
        dim: :math:`D`, length of a representation, at least 1 (paper: 128). None: 128, or the
            number of channels where that is less; :meth:`resolve_dim` is told it.
        bandwidth: ``'silverman'`` (Eq. 6), ``'scott'`` or ``'identity'`` (Table S2).
        weighted: use the counts as kernel weights (Eq. 9); False sets :math:`w_j = 1` (Table S1).
        momentum: :math:`\beta` of Eq. 8, in [0, 1). The paper has 0.01, see README.md here.
        update_rule: ``'normalized'`` divides Eq. 8 by the sum of its own weights and leaves
            clusters that received nothing alone; ``'literal'`` is Eq. 8 as printed, which
            collapses; ``'mean'`` is the running mean.
        revive_after: a centroid that has received nothing for this many updates moves, within the
            next 16 or a sixth of so many, whichever is less, to a row of the current update; the
            samples it stood for are counted with its nearest neighbour. None revives only centroids
            that never received any (the paper's behaviour: there are none as long as all
            representations are finite).

    Attributes:
        dim: D; None until :meth:`resolve_dim` if it was None.
        centroids: (N_C, D) float32; None as long as D is not known.
        counts: (N_C,) int64, samples assigned so far; a copy, exact up to 2^53, and up to 2^24 on a
            device without float64.
        idle: (N_C,) int64, updates since the last sample; a copy.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

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
        # Updates from one look for idle centroids to the next.
        self._review = _REVIEW if revive_after is None else min(_REVIEW, max(1, revive_after // 6))
        self._start(torch.empty(0).device)

    def _start(self, device: torch.device) -> None:
        """Empty state."""
        num, wide = self.num_centroids, widest_float(device.type)
        self.centroids: Tensor | None = None
        if self.dim is not None:
            self.centroids = torch.zeros(num, self.dim, dtype=torch.float32, device=device)
        # (N_C, 1): whole numbers; a trace where there are none, so that one can divide by it.
        self._counts = torch.full((num, 1), _trace(wide), dtype=wide, device=device)
        # (N_C + 1,): the last update with a sample, of each place.
        self._last = torch.zeros(num + 1, dtype=torch.int64, device=device)
        self._prepare(device)
        # How many are seeded and how many updates there were: only the host counts these.
        self._seeded = 0
        self._updates = 0

    def _prepare(self, device: torch.device) -> None:
        """What updates work on. Place 0 is nowhere, at infinity; the centroids follow.

        Points have homogeneous coordinates, D of them and a 1: where points are added up, it counts
        them.
        """
        num, wide = self.num_centroids, widest_float(device.type)
        self._places = torch.arange(1, num + 1, device=device)[:, None]
        if self.centroids is not None:
            dim = self.centroids.shape[1]
            self._points = torch.ones(num + 1, dim + 1, dtype=wide, device=device)
            self._points[0] = torch.inf
            self._rows = self._points.new_ones(0, dim + 1)  # of an update; grows
            self._settle()

    def _settle(self) -> None:
        """Let what follows from the centroids follow them."""
        self._points[1:, :-1] = self.centroids
        self._mixture: Mixture | None = None  # worked out when it is asked for

    def resolve_dim(self, num_channels: int) -> int:
        """Settle D where it was left open. Further calls change nothing.

        Args:
            num_channels: C of the features at the blocking point.

        Returns:
            D.

        Raises:
            ValueError: D is more than there are channels.
        """
        if self.dim is None:
            self.dim = min(128, num_channels)
            if self.centroids is not None and self.centroids.shape[1] != self.dim:
                self._refuse(tuple(self.centroids.shape))  # loaded before D was known
            if self.centroids is None:
                self._start(self._counts.device)
        check_dim(self.dim, num_channels)
        return self.dim

    @property
    def counts(self) -> Tensor:
        return self._counts[:, 0].long()

    @property
    def idle(self) -> Tensor:
        return self._updates - self._last[1:]

    @property
    def ready(self) -> bool:
        """Whether every centroid is seeded. A Python bool; reading it costs no synchronisation."""
        return self._seeded == self.num_centroids

    @property
    def weights(self) -> Tensor:
        """(N_C,), each cluster's share of all retained samples (Eq. 9); sums to one.

        Of type float64, float32 where the device has no other.
        """
        return self.counts / self._counts.sum().clamp(min=1)

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
        if self._mixture is None:
            centroids = self._points[1:, :-1]
            log_weights = self._counts[:, 0].log()
            if self.weighted:  # Eq. 9; without a sample at all, every cluster has the same share
                least = torch.finfo(log_weights.dtype).min / 2
                log_weights = F.threshold_(log_weights, -1, least).log_softmax(dim=0)
            else:
                log_weights.zero_()
            self._mixture = Mixture.build(
                centroids,
                log_weights,
                spread(centroids, self.bandwidth),
                spread_factor(self.bandwidth, self.num_centroids, self.dim),
            )
        return self._mixture.log_density(x)

    @torch.inference_mode()  # nothing leaves it, and its many small calls cost less
    def update(self, x: Tensor) -> None:
        """Account for retained samples: seed what is not seeded yet, then Eq. 7–9.

        Args:
            x: (K, dim) representations, K >= 0. Rows with a NaN or Inf never reach a centroid.

        Raises:
            ValueError: ``x`` has another shape.
        """
        self._check(x)
        x = x.float()
        num_new = min(len(x), self.num_centroids - self._seeded)
        with self._exact():
            if num_new:
                self._seed(x[:num_new])
            if len(x) > num_new:
                self._follow(x[num_new:] if num_new else x)

    def _exact(self) -> contextlib.AbstractContextManager:
        """Autocast leaves float64 alone, and would cast the products of float32."""
        device = self._counts.device.type
        if widest_float(device) == torch.float64:
            return contextlib.nullcontext()
        return torch.autocast(device, enabled=False)

    def _seed(self, x: Tensor) -> None:
        first, last = self._seeded, self._seeded + len(x)
        # A non-finite row still uses up its place (the host counts rows, only the device sees
        # values): an empty cluster at the mean of the others, which a later update refills.
        finite = _finite(x)
        x = x.nan_to_num(0, 0, 0)
        mean = (x * finite[:, None]).sum(dim=0) / finite.sum().clamp(min=1)
        self.centroids[first:last] = torch.where(finite[:, None], x, mean)
        self._counts[first:last, 0] = finite
        self._counts.clamp_(min=_trace(self._counts.dtype))
        unseen = self._updates - _FOREVER
        self._last[1 + first : 1 + last] = torch.where(finite, self._updates, unseen)
        self._seeded = last
        self._settle()

    def _follow(self, x: Tensor) -> None:
        if self._updates % self._review == 0:
            self._revive(x)
        self._updates += 1
        rows = self._homogeneous(x)
        # A row that is not finite moves so far away that everything is at an infinite distance; of
        # what is equally near argmin takes the first, which is nowhere.
        far = torch.finfo(rows.dtype).max
        nearest = distances(rows.nan_to_num_(far, far, far), self._points).argmin(dim=1)  # Eq. 7
        # A product with the one-hot assignment instead of index_add_: its result does not depend on
        # the order of threads, so every rank holds the same bits.
        assigned = rows.new_empty(self.num_centroids, len(rows))
        received = torch.eq(self._places, nearest, out=assigned) @ rows
        rule = UPDATE_RULES[self.update_rule]  # Eq. 8
        moved = rule(self._points[1:], self._counts, received, self.momentum)
        torch.div(moved[:, :-1], moved[:, -1:], out=self.centroids)
        self._counts.add_(received[:, -1:])  # n_j of Eq. 8, numerator of Eq. 9
        self._last.index_fill_(0, nearest, self._updates)
        self._settle()

    def _homogeneous(self, x: Tensor) -> Tensor:
        """(K, D) -> (K, D + 1) in the type in which all is computed, valid until the next call."""
        if len(self._rows) < len(x):
            with torch.inference_mode(False):  # a copy of the model takes it along
                self._rows = self._rows.new_ones(len(x), self.dim + 1)
        rows = self._rows[: len(x)]
        rows[:, :-1] = x
        return rows

    def _revive(self, x: Tensor) -> None:
        """Move empty and long idle centroids to the first rows, at most a few in one update.

        As many as it takes for each centroid to have had its turn within ``revive_after`` updates.
        """
        patience = _FOREVER if self.revive_after is None else self.revive_after
        turns = math.ceil(self._review * self.num_centroids / patience)
        places = min(len(x), turns, self.num_centroids)
        x = x[:places]
        last, slots = self._last[1:].sort(stable=True)
        slots = slots[:places]
        dead = (last[:places] <= self._updates - patience) & _finite(x)
        points = self._points[1:, :-1]
        old = points.index_select(0, slots)
        heirs = distances(old, points).index_fill_(1, slots, torch.inf).argmin(dim=1)
        dead = dead[:, None]
        inherited = self._counts.index_select(0, slots) * dead
        if self.num_centroids > places:
            self._counts.index_add_(0, heirs, inherited)
            self._counts.index_add_(0, slots, inherited, alpha=-1)
            self._counts.clamp_(min=_trace(self._counts.dtype))
        points.index_copy_(0, slots, torch.where(dead, x, old))

    def _check(self, x: Tensor) -> None:
        if self.dim is None:
            raise ValueError(
                'dim=None: how long a representation is follows from the number of channels; '
                'call resolve_dim(num_channels) first'
            )
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f'expected representations of shape (N, {self.dim}), got {tuple(x.shape)}; '
                f'the estimator was built with dim={self.dim}'
            )
        # Some wrappers, such as FSDP, move parameters and buffers one by one.
        self._move(x.device)

    def num_active(self, window: int = 200) -> Tensor:
        """() int64 on the device: centroids with a sample in the last ``window`` updates."""
        return ((self.idle < window) & (self.counts > 0)).sum()

    def _apply(self, fn, *args, **kwargs) -> AdaptiveDensityEstimator:
        """Go along to another device; stay float32 and int64 whatever the model becomes."""
        super()._apply(fn, *args, **kwargs)
        self._move(fn(self._last.new_empty(0)).device)
        return self

    @torch.inference_mode(False)  # what is made in there cannot be changed outside
    def _move(self, device: torch.device) -> None:
        if device == self._counts.device:
            return
        if self._counts.is_meta:  # nothing was ever there
            return self._start(device)
        wide = widest_float(device.type)
        self.centroids = None if self.centroids is None else self.centroids.to(device)
        self._counts = self.counts[:, None].to(device).to(wide).clamp_(min=_trace(wide))
        self._last = self._last.to(device)
        self._prepare(device)

    def get_extra_state(self) -> Tensor:
        """The state as one integer tensor, which nobody averages or casts; :func:`unpack` reads it.

        A tensor, because MMEngine's EMAHook copies every entry of a state dict as one, DCP stores
        those without pickling, and their shape tells N_C and D.
        """
        return pack(self.centroids, self.counts, self.idle, self._seeded, self._updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a state of the same N_C and D; with another one say so and start afresh."""
        shape = (state.shape[0] - 1, state.shape[1] - 2)
        if shape != (self.num_centroids, shape[1] if self.dim is None else self.dim):
            return self._refuse(shape)
        device = self._counts.device
        self._start(device)
        loaded = unpack(state)
        self._seeded, self._updates = loaded['num_seeded'], loaded['num_updates']
        self.centroids = loaded['centroids'].to(device, copy=True)
        self._counts.copy_(loaded['counts'][:, None]).clamp_(min=_trace(self._counts.dtype))
        self._last[1:] = self._updates - loaded['idle']
        self._prepare(device)

    def _refuse(self, found: tuple[int, int] | None) -> None:
        dim = self.dim if self.dim is not None or found is None else found[1]
        warnings.warn(
            f'expected a density estimate of shape {(self.num_centroids, dim)} in the '
            f'checkpoint, found {"none" if found is None else f"one of shape {found}"}: the '
            'estimate starts afresh, all other weights are loaded',
            stacklevel=2,
        )
        self._start(self._counts.device)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        if self.centroids is not None:  # else there is nothing yet, not even a shape
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        key = f'{prefix}_extra_state'
        buffers = _take_buffers(state_dict, prefix)
        if buffers is not None:
            state_dict[key] = pack(**buffers)
        if key in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        else:
            self._refuse(None)

    def extra_repr(self) -> str:
        return (
            f'num_centroids={self.num_centroids}, dim={self.dim}, bandwidth={self.bandwidth!r}, '
            f'weighted={self.weighted}, momentum={self.momentum}, '
            f'update_rule={self.update_rule!r}, revive_after={self.revive_after}'
        )


def pack(
    centroids: Tensor,
    counts: Tensor,
    idle: Tensor,
    num_seeded: int | Tensor,
    num_updates: int | Tensor,
) -> Tensor:
    """The state of an estimate as one tensor of integers, bit for bit.

    Returns:
        (N_C + 1, D + 2) int64: a row with the two numbers; then one for each centroid: its count,
        its idle updates and the bits of its float32 coordinates.
    """
    num, dim = centroids.shape
    state = counts.new_zeros(num + 1, dim + 2)
    state[0, 0], state[0, 1] = num_seeded, num_updates
    state[1:, 0], state[1:, 1] = counts, idle
    state[1:, 2:] = centroids.float().view(torch.int32)
    return state


def unpack(state: Tensor) -> dict[str, Tensor | int]:
    """The arguments of :func:`pack`, by name. Waits for the device that the state is on."""
    num_seeded, num_updates = state[0, :2].tolist()
    return {
        'centroids': state[1:, 2:].to(torch.int32).view(torch.float32),
        'counts': state[1:, 0],
        'idle': state[1:, 1],
        'num_seeded': num_seeded,
        'num_updates': num_updates,
    }


def read_estimate(state_dict: dict, prefix: str = '') -> dict[str, Tensor | int] | None:
    """What a checkpoint of this version or of 0.1 holds, see :func:`unpack`; None for nothing.

    Args:
        state_dict: of a model.
        prefix: of the estimator in it, ``'pfb.pruner.estimator.'`` in a segmentor.
    """
    state = state_dict.get(f'{prefix}_extra_state')
    return _take_buffers(dict(state_dict), prefix) if state is None else unpack(state)


def _take_buffers(state_dict: dict, prefix: str) -> dict[str, Tensor] | None:
    """What version 0.1 wrote, taken out; None where it is not all there."""
    names = ('centroids', 'counts', 'idle', 'num_seeded', 'num_updates')
    found = {name: state_dict.pop(f'{prefix}{name}', None) for name in names}
    return None if any(value is None for value in found.values()) else found


def _trace(dtype: torch.dtype) -> float:
    """What is lost where one is added, and is still no zero where it is squared."""
    return torch.finfo(dtype).tiny ** 0.5


def _finite(x: Tensor) -> Tensor:
    """(len(x),) bool, whether all of a row is finite."""
    return torch.linalg.vector_norm(x, torch.inf, dim=1) < torch.inf
