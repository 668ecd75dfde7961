"""Adaptive Distribution Estimation (Sec. 3.4): the density of the samples retained so far.

The density itself, Eq. 4–6, is in density.py; the clusters that it is made of, Eq. 7–9, are in
clusters.py. Nothing here makes the host wait for the device.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .checks import check_bool, check_choice, check_dim, check_integer, check_number
from .clusters import SCHEMA, Clusters, log_weights
from .density import BANDWIDTHS, Mixture


class AdaptiveDensityEstimator(nn.Module):
    r"""Density of the retained samples' representations, kept as ``num_centroids`` kernels.

    The first ``num_centroids`` rows that :meth:`update` sees become the centroids. From then on
    each row joins its nearest centroid (Eq. 7), the centroids follow their rows (Eq. 8) and the
    counts become kernel weights (Eq. 9).

    The state is neither parameters nor buffers: averaging those of a model or casting them to half
    precision would spoil it. It travels as the module's extra state.

    Args:
        num_centroids: :math:`N_C`, at least 1 (paper: 64). No image is left out before so many have
            been seen, so take less for very short runs; with 16, fewer rare images are found.
        dim: :math:`D`, length of a representation, at least 1 (paper: 128). None: 128, or the
            number of channels where that is less; :meth:`resolve_dim` is told it.
        bandwidth: ``'silverman'`` (Eq. 6), ``'scott'`` or ``'identity'``, for ablations (Table 6).
            The first two were not told apart.
        weighted: use the counts as kernel weights (Eq. 9). False sets :math:`w_j = 1`, for
            ablations (Table 5).
        momentum: :math:`\beta` of Eq. 8, in [0, 1), how much the past weighs. With 0.1 the density
            follows the features of a network in training better than with the paper's 0.01; 0.5
            is the mean of all samples.
        revive_after: updates, at least 1. A centroid that received no sample for so long moves to a
            new one, at most 16 updates later, and its nearest neighbour takes over its count. None,
            for ablations, moves a centroid only if it never had a sample, as in the paper; about
            half of them then receive nothing any more after a few hundred iterations.

    Attributes:
        dim: D; None until :meth:`resolve_dim` if it was None.

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
        revive_after: int | None = 100,
    ) -> None:
        super().__init__()
        check_integer('num_centroids', num_centroids, low=1)
        if dim is not None:
            check_integer('dim', dim, low=1)
        check_choice('bandwidth', bandwidth, BANDWIDTHS)
        check_bool('weighted', weighted)
        check_number('momentum', momentum, 0, 1, open_high=True)
        if revive_after is not None:
            check_integer('revive_after', revive_after, low=1)
        self.num_centroids = num_centroids
        self.dim = dim
        self.bandwidth = bandwidth
        self.weighted = weighted
        self.momentum = momentum
        self.revive_after = revive_after
        self._device = torch.empty(0).device
        self._start_empty()

    def _start_empty(self) -> None:
        known = self.dim is not None
        self._hold(Clusters(self.num_centroids, self.dim, self._device) if known else None)

    def _hold(self, clusters: Clusters | None) -> None:
        self._clusters = clusters  # None as long as D is not known
        self._mixture: Mixture | None = None  # worked out when it is asked for

    def resolve_dim(self, num_channels: int) -> int:
        """Settle D where it was left open, by the number of channels at the blocking point, and
        return it. Further calls change nothing.

        Raises:
            ValueError: D is more than there are channels.
        """
        if self.dim is None:
            self.dim = min(128, num_channels)
            if self._clusters is None:
                self._start_empty()
            elif self.centroids.shape[1] != self.dim:  # loaded before D was known
                self._start_afresh(f'one of shape {tuple(self.centroids.shape)}')
        check_dim(self.dim, num_channels)
        return self.dim

    @property
    def ready(self) -> bool:
        """Whether every centroid is seeded. Known to the host."""
        return self._clusters is not None and self._clusters.num_seeded == self.num_centroids

    @property
    def centroids(self) -> Tensor | None:
        """(N_C, D) float32; None as long as D is not known."""
        return None if self._clusters is None else self._clusters.centroids

    @property
    def counts(self) -> Tensor | None:
        """(N_C,) int64, samples so far; exact up to 2^53, on a device without float64 to 2^24; None
        as long as D is not known."""
        return None if self._clusters is None else self._clusters.counts

    @property
    def idle(self) -> Tensor | None:
        """(N_C,) int64, updates since the last sample; None as long as D is not known."""
        return None if self._clusters is None else self._clusters.idle

    @property
    def weights(self) -> Tensor | None:
        """(N_C,), each cluster's share of all retained samples (Eq. 9); None as long as D is not
        known."""
        return None if self._clusters is None else log_weights(self._clusters.sizes).exp()

    def num_active(self, window: int = 200) -> Tensor:
        """() int64 on the device: centroids with a sample in the last ``window`` updates."""
        return ((self.idle < window) & (self.counts > 0)).sum()

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Tensor:
        """Natural log of the estimated density (Eq. 4–6) at each row of (N, D): (N,) float32,
        finite for finite rows, NaN for rows with a NaN or Inf.

        Raises:
            ValueError: ``x`` has another shape.
        """
        self._check(x)
        if self._mixture is None:
            sizes = self._clusters.sizes
            weights = log_weights(sizes) if self.weighted else torch.zeros_like(sizes[:, 0])
            self._mixture = Mixture.build(self._clusters.points[:, :-1], weights, self.bandwidth)
        return self._mixture.log_density(x)

    @torch.inference_mode()  # nothing leaves it, and its many small calls cost less
    def update(self, x: Tensor) -> None:
        """Account for (K, D) retained samples, K >= 0: seed what is not seeded yet, then Eq. 7–9.
        Rows with a NaN or Inf never reach a centroid.

        Raises:
            ValueError: ``x`` has another shape.
        """
        self._check(x)
        x, clusters = x.float(), self._clusters
        num_new = min(len(x), self.num_centroids - clusters.num_seeded)
        if num_new:
            clusters.seed(x[:num_new])
        if len(x) > num_new:
            clusters.follow(x[num_new:], self.momentum, self.revive_after)
        self._mixture = None

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
        self._move(x.device)  # some wrappers, such as FSDP, move parameters and buffers one by one

    def _apply(self, fn, *args, **kwargs) -> AdaptiveDensityEstimator:
        """Go along to another device; no cast of the model reaches the state."""
        super()._apply(fn, *args, **kwargs)
        self._move(fn(torch.empty(0, dtype=torch.int64, device=self._device)).device)
        return self

    @torch.inference_mode(False)  # tensors that are made in there could not be changed outside
    def _move(self, device: torch.device) -> None:
        if device == self._device:
            return
        without_data = 'meta' in (device.type, self._device.type)
        self._device = device
        if without_data:
            self._start_empty()
        elif self._clusters is not None:
            self._hold(Clusters.unpack(self._clusters.pack(), device))

    def get_extra_state(self) -> Tensor:
        """See :meth:`Clusters.pack`. One tensor: MMEngine's EMAHook copies every entry as one."""
        return self._clusters.pack()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a state of the same N_C and D; with another one say so and start afresh."""
        num, dim = len(state) - 1, state.shape[1] - 2
        if state[0, 2] != SCHEMA:
            self._start_afresh(f'one of schema {int(state[0, 2])} instead of {SCHEMA}')
        elif (num, dim) != (self.num_centroids, self.dim or dim):
            self._start_afresh(f'one of shape {(num, dim)}')
        else:
            self._hold(Clusters.unpack(state, self._device))

    def _start_afresh(self, found: str) -> None:
        warnings.warn(
            f'expected a density estimate of shape {(self.num_centroids, self.dim)} in the '
            f'checkpoint, found {found}: the estimate starts afresh, all other weights are loaded',
            stacklevel=2,
        )
        self._start_empty()

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        if self._clusters is not None:  # else there is nothing yet, not even a shape
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        if f'{prefix}_extra_state' in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        else:
            self._start_afresh('none')
