"""Log density of a weighted mixture of diagonal Gaussians, and the rules for its bandwidth.

Pure functions, Eq. 4–6 of the paper. Everything stays in log space and is computed in float64: with
D = 128 the density itself leaves float32's range, and features may sit far from the origin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BANDWIDTHS = ('silverman', 'scott', 'identity')


def bandwidth(centroids: Tensor, rule: str = 'silverman') -> Tensor:
    r"""Standard deviation of the kernel per channel, :math:`\sqrt{h_d}` of Eq. 6.

    Args:
        centroids: (N_C, D), finite.
        rule: ``'silverman'`` is Eq. 6, ``'scott'`` the other rule of Table S2,
            ``'identity'`` its baseline :math:`H = I`.

    Returns:
        (D,) float64, positive. A channel in which the centroids agree to float32 precision has no
        spread of its own and takes the mean spread of the others (1 where none has any): Eq. 6
        would divide by zero there.
    """
    num, dim = centroids.shape
    centroids = centroids.double()
    if rule == 'identity':
        return torch.ones_like(centroids[0])
    factor = (4 / ((dim + 2) * num)) if rule == 'silverman' else 1 / num
    sigma = centroids.std(dim=0, correction=0)
    rounding = 2 * torch.finfo(torch.float32).eps * centroids.abs().amax(dim=0)
    spread = sigma > rounding
    total = torch.where(spread, sigma, 0).sum()
    typical = torch.where(total > 0, total / spread.sum().clamp(min=1), 1)
    return factor ** (1 / (dim + 4)) * torch.where(spread, sigma, typical)


def log_density(x: Tensor, centroids: Tensor, weights: Tensor, scale: Tensor) -> Tensor:
    r"""Log of Eq. 4 with the kernel of Eq. 5.

    Args:
        x: (N, D) representations.
        centroids: (N_C, D).
        weights: (N_C,), :math:`w_j` of Eq. 9, non-negative; a weight of 0 takes a kernel out.
        scale: (D,), :math:`\sqrt{h_d}`.

    Returns:
        (N,) float32, natural logarithm; finite for finite rows, NaN for rows with a NaN or Inf.
        Time O(N N_C D), memory O((N + N_C) D + N N_C).
    """
    num, dim = centroids.shape
    centre = centroids.double().mean(dim=0)
    z = (x.double() - centre) / scale
    c = (centroids.double() - centre) / scale
    squared = z.square().sum(1, keepdim=True) + c.square().sum(1) - 2 * z @ c.T
    log_kernel = -0.5 * (squared.clamp(min=0) + dim * math.log(2 * math.pi)) - scale.log().sum()
    log_f = torch.logsumexp(weights.double().log() - math.log(num) + log_kernel, dim=1)
    limit = torch.finfo(torch.float32).max
    finite = torch.isfinite(x).all(dim=1)
    return torch.where(finite, log_f.clamp(-limit, limit), torch.nan).float()
