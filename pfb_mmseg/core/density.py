"""Log density of a weighted mixture of diagonal Gaussians, Eq. 4–5, and its bandwidth, Eq. 6.

Everything stays in log space, since with D = 128 the density itself leaves float32's range, and is
computed in float64 wherever the device has it.
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
    """float64, or float32 on a type of device that does not compute in it, such as Apple's."""
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
    r"""Eq. 6: standard deviation of the kernel per channel, :math:`\sqrt{h_d}`.

    Args:
        centroids: (N_C, D), finite.
        rule: ``'silverman'`` is Eq. 6, ``'scott'`` the other rule of Table 6,
            ``'identity'`` its baseline :math:`H = I`.

    Returns:
        (D,) of type :func:`widest_float`, positive. A channel in which the centroids agree to
        float32 precision has no spread of its own and takes the mean spread of the others (1 where
        none has any): Eq. 6 would divide by zero there.
    """
    return _spread(centroids, rule) * _factor(rule, *centroids.shape)


def _factor(rule: str, num: int, dim: int) -> float:
    """What Eq. 6 multiplies the spread of each channel by. N_C and D decide it alone."""
    per_volume = {'silverman': 4 / ((dim + 2) * num), 'scott': 1 / num, 'identity': 1}
    return per_volume[rule] ** (1 / (dim + 4))


def _spread(centroids: Tensor, rule: str) -> Tensor:
    r"""(D,), :math:`\sigma_d` of Eq. 6."""
    wide = widest_float(centroids.device.type)
    if rule == 'identity':
        return torch.ones(centroids.shape[1], dtype=wide, device=centroids.device)
    sigma, mean = _deviation_and_mean(centroids.to(wide))
    # Where the centroids agree so closely, their mean is as large as the largest of them.
    rounding = 2 * torch.finfo(torch.float32).eps
    varies = sigma.sub(mean.abs_(), alpha=rounding).gt_(0)  # 1 where there is any, else 0
    typical = (sigma.dot(varies) / varies.sum()).nan_to_num(nan=1.0)
    return typical.lerp(sigma, varies)


def _deviation_and_mean(centroids: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) each, per channel of (N_C, D)."""
    if centroids.dtype != torch.float64:
        # The rounded mean of channels far from zero would cost the deviation.
        sigma, mean = torch.std_mean(centroids - centroids[0], dim=0, correction=0)
        return sigma, mean + centroids[0]
    if centroids.device.type != 'cpu':
        return torch.std_mean(centroids, dim=0, correction=0)
    # Over the first dimension torch's own takes five times as long on a CPU.
    mean = centroids.mean(dim=0)
    return (centroids - mean).square_().mean(dim=0).sqrt_(), mean


class Mixture(NamedTuple):
    """What Eq. 4 and 5 need to know of the centroids, whatever the rows.

    Attributes:
        origin: (D,), subtracted from every row; None where nothing has to be.
        scale: (D,), the unit of each channel.
        precision: one over the variance of the kernels in that unit.
        centroids: (N_C, D) from the origin, in units of ``scale``.
        log_weights: (N_C,), natural logarithm of the weights.
        bias: (N_C,), what a matrix product adds: ``log_weights`` less the squares of ``centroids``
            by twice the variance; None where distances are worked out from differences.
        log_volume: (), log of N_C and of what Eq. 5 divides by.
    """

    origin: Tensor | None
    scale: Tensor
    precision: float
    centroids: Tensor
    log_weights: Tensor
    bias: Tensor | None
    log_volume: Tensor

    @classmethod
    def build(cls, centroids: Tensor, log_weights: Tensor, rule: str = 'silverman') -> Mixture:
        """From centroids (N_C, D), natural logs (N_C,) of the weights of Eq. 9 and a rule for the
        :func:`bandwidth`."""
        num, dim = centroids.shape
        # The factor is a number that the host knows, and stays one.
        scale, factor = _spread(centroids, rule), _factor(rule, num, dim)
        centroids = centroids.to(scale.dtype)
        # On a CPU a matrix product is many times faster. On a GPU differences are one launch, and
        # float32 has not the digits for anything else.
        product = scale.dtype == torch.float64 and scale.device.type == 'cpu'
        origin = None
        if product or scale.dtype != torch.float64:
            # A channel may lie 1e6 of its deviations from zero. Differences in float64 have digits
            # enough for that, squares and float32 have not; what lies close together is subtracted
            # without an error in either.
            origin = centroids[0]
            centroids = centroids - origin
        constant = dim * math.log(factor * math.sqrt(2 * math.pi)) + math.log(num)
        log_volume = scale.log().sum().add_(constant)
        precision = factor**-2
        centroids, bias = centroids / scale, None
        if product:
            norm = torch.linalg.vector_norm(centroids, dim=1)
            bias = torch.addcmul(log_weights, norm, norm, value=-precision / 2)
        return cls(origin, scale, precision, centroids, log_weights, bias, log_volume)

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Tensor:
        """Natural log of Eq. 4 with the kernel of Eq. 5: (N, D) -> (N,) float32, finite for finite
        rows, NaN for rows with a NaN or Inf. Time O(N N_C D), memory O((N + N_C) D + N N_C)."""
        log_f = self._from_differences(x) if self.bias is None else self._from_product(x)
        result = torch.empty_like(log_f, dtype=torch.float32)
        limit = torch.finfo(result.dtype).max
        # What lies beyond float32 is rounded to infinity, and moved back to the edge.
        return torch.sub(log_f, self.log_volume, out=result).clamp_(-limit, limit)

    def _from_differences(self, x: Tensor) -> Tensor:
        # Inf becomes NaN, which stays one through all that follows.
        x = x.nan_to_num(torch.nan, torch.nan, torch.nan)
        if self.origin is not None:
            x = x.float() - self.origin
        apart = distances(x / self.scale, self.centroids)
        log_kernels = torch.addcmul(self.log_weights, apart, apart, value=-self.precision / 2)
        return log_kernels.logsumexp(dim=1)

    def _from_product(self, x: Tensor) -> Tensor:
        # -|x - c|^2 / 2 = x.c - |c|^2 / 2 - |x|^2 / 2, and the last of them is the same for all c.
        # Inf makes each of the first infinite or NaN, and less the last all of them NaN.
        x = (x - self.origin) / self.scale
        norm = torch.linalg.vector_norm(x, dim=1)
        log_kernels = torch.addmm(self.bias, x, self.centroids.T, alpha=self.precision)
        return log_kernels.logsumexp(dim=1).addcmul_(norm, norm, value=-self.precision / 2)
