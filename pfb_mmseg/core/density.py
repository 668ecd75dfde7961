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
    if rule == 'identity':
        return torch.ones(dim, dtype=torch.float64, device=centroids.device)
    factor = (4 / ((dim + 2) * num)) if rule == 'silverman' else 1 / num
    # Written out: torch's own std is several times slower over the first dimension on a CPU.
    centroids = centroids.double()
    sigma = (centroids - centroids.mean(dim=0)).square().mean(dim=0).sqrt()
    rounding = 2 * torch.finfo(torch.float32).eps * centroids.abs().amax(dim=0)
    spread = sigma > rounding
    typical = ((sigma * spread).sum() / spread.sum()).nan_to_num(nan=1.0)
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
    centroids = centroids.double()
    z = (x - centroids[0]) / scale
    c = (centroids - centroids[0]) / scale
    # log(w K(x, c)) = log w - |z - c|^2 / 2 - constant, with |z - c|^2 = |z|^2 - 2 z.c + |c|^2.
    z_squared, c_squared = z.square().sum(dim=1), c.square().sum(dim=1)
    log_kernel = torch.addmm(weights.double().log() - c_squared / 2, z, c.T)
    constant = scale.log().sum() + (dim / 2 * math.log(2 * math.pi) + math.log(num))
    log_f = torch.logsumexp(log_kernel, dim=1) - (z_squared / 2 + constant)
    limit = torch.finfo(torch.float32).max
    # Zero times the square is NaN where there is a NaN or Inf in the row.
    return (log_f.clamp(-limit, limit) + 0 * z_squared).float()
