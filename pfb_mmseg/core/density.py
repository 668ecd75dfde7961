"""Log density of a weighted mixture of diagonal Gaussians, and the rules for its bandwidth.

Eq. 4–6 of the paper. Everything stays in log space, since with D = 128 the density itself leaves
float32's range, and is computed in float64 wherever the device has it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

BANDWIDTHS = ('silverman', 'scott', 'identity')


@functools.cache
def widest_float(device_type: str) -> torch.dtype:
    """float64, or float32 on a device that does not compute in float64, such as Apple's.

    Args:
        device_type: ``torch.device.type``. Each is tried once.
    """
    try:
        one = torch.ones(1, 1, dtype=torch.float64, device=device_type)
        torch.addmm(one, one, one).logsumexp(dim=1)
    except (TypeError, RuntimeError):  # which of them depends on the device
        return torch.float32
    return torch.float64


def distances(a: Tensor, b: Tensor) -> Tensor:
    """(len(a), len(b)) Euclidean, from differences: a large common offset costs no precision."""
    return torch.cdist(a, b, compute_mode='donot_use_mm_for_euclid_dist')


def bandwidth(centroids: Tensor, rule: str = 'silverman') -> Tensor:
    r"""Standard deviation of the kernel per channel, :math:`\sqrt{h_d}` of Eq. 6.

    Args:
        centroids: (N_C, D), finite.
        rule: ``'silverman'`` is Eq. 6, ``'scott'`` the other rule of Table S2,
            ``'identity'`` its baseline :math:`H = I`.

    Returns:
        (D,) of type :func:`widest_float`, positive. A channel in which the centroids agree to
        float32 precision has no spread of its own and takes the mean spread of the others (1 where
        none has any): Eq. 6 would divide by zero there.
    """
    num, dim = centroids.shape
    wide = widest_float(centroids.device.type)
    if rule == 'identity':
        return torch.ones(dim, dtype=wide, device=centroids.device)
    factor = (4 / ((dim + 2) * num)) if rule == 'silverman' else 1 / num
    centroids = centroids.to(wide)
    largest = torch.linalg.vector_norm(centroids, torch.inf, dim=0)
    if wide != torch.float64:  # the rounded mean of channels far from zero would cost the deviation
        centroids = centroids - centroids[0]
    sigma = centroids.std(dim=0, correction=0)
    rounding = 2 * torch.finfo(torch.float32).eps
    spread = sigma.sub(largest, alpha=rounding).gt_(0)  # 1 where there is any, else 0
    typical = (sigma.dot(spread) / spread.sum()).nan_to_num(nan=1.0)
    return typical.lerp(sigma, spread).mul_(factor ** (1 / (dim + 4)))


class Mixture(NamedTuple):
    """What Eq. 4 and 5 need to know of the centroids, whatever the rows.

    Attributes:
        origin: (D,), taken from every row; None where nothing has to be.
        scale: (D,), :math:`\\sqrt{h_d}`, the unit of each channel.
        centroids: (N_C, D) from the origin, in units of ``scale``.
        log_weight: (N_C,), the logarithm of all that stands before the exponential in Eq. 4 and 5.
    """

    origin: Tensor | None
    scale: Tensor
    centroids: Tensor
    log_weight: Tensor

    @classmethod
    def build(cls, centroids: Tensor, weights: Tensor, scale: Tensor) -> Mixture:
        """Of the arguments of :func:`log_density`."""
        num, dim = centroids.shape
        origin = None
        if scale.dtype != torch.float64:
            # A channel may lie 1e6 of its deviations from zero. Float64 has digits enough for that;
            # in float32 the difference of what lies close together is exact, its quotient is not.
            origin = centroids[0]
            centroids = centroids - origin
        constant = dim / 2 * math.log(2 * math.pi) + math.log(num)
        log_weight = weights.to(scale.dtype).log().sub(scale.log().sum()).sub_(constant)
        return cls(origin, scale, centroids / scale, log_weight)

    def log_density(self, x: Tensor) -> Tensor:
        """See :func:`log_density`."""
        # Inf becomes NaN, which stays one through all that follows.
        x = x.nan_to_num(torch.nan, torch.nan, torch.nan)
        if self.origin is not None:
            x = x.float() - self.origin
        distance = distances(x / self.scale, self.centroids)
        log_kernel = torch.addcmul(self.log_weight, distance, distance, value=-0.5)
        limit = torch.finfo(torch.float32).max
        return log_kernel.logsumexp(dim=1).clamp_(-limit, limit).float()


def log_density(x: Tensor, centroids: Tensor, weights: Tensor, scale: Tensor) -> Tensor:
    r"""Log of Eq. 4 with the kernel of Eq. 5.

    Args:
        x: (N, D) representations.
        centroids: (N_C, D).
        weights: (N_C,), :math:`w_j` of Eq. 9, non-negative; a weight of 0 takes a kernel out.
        scale: (D,), :math:`\sqrt{h_d}`; all is computed in its type.

    Returns:
        (N,) float32, natural logarithm; finite for finite rows, NaN for rows with a NaN or Inf.
        Time O(N N_C D), memory O((N + N_C) D + N N_C).
    """
    return Mixture.build(centroids, weights, scale).log_density(x)
