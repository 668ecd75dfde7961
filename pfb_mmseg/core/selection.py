"""Importance of a sample, and which samples stay. Eq. 1–3 of the paper, in log space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_choice, check_integer, check_number
from .ranks import Exchange

EXPLORATION_SPACES = ('density', 'log_density')


class Selection(NamedTuple):
    """Which images of a batch go on.

    Attributes:
        indices: (K,) int64, ascending positions of the images that this process goes on with: in
            its batch or, where there is an ``exchange``, in the batches of all processes one after
            the other.
        num_candidates: N, the number of images of this process that were looked at.
        log_density: (N,) float32, NaN where an image was not finite; None where no density was
            needed to decide.
        exchange: what fetches the images that were chosen from the batches of all processes; None
            where each process goes on with images of its own.
    """

    indices: Tensor
    num_candidates: int
    log_density: Tensor | None
    exchange: Exchange | None = None

    @property
    def kept(self) -> Tensor:
        """(N,) bool, True for the images of this process that stay, with whichever process."""
        if self.exchange is not None:
            return self.exchange.own(self.num_candidates)
        mask = torch.zeros(self.num_candidates, dtype=torch.bool, device=self.indices.device)
        return mask.index_fill_(0, self.indices, True)

    @property
    def unchanged(self) -> bool:
        """Whether this process goes on with the batch that it had. Known to the host."""
        return self.exchange is None and len(self.indices) == self.num_candidates

    def take(self, rows: Tensor) -> Tensor:
        """(N, ...) of this process's batch -> (K, ...) of the images that it goes on with.

        Where there is an ``exchange``, every process must call this, in the same order.
        """
        if self.exchange is not None:
            return self.exchange.move(rows)
        return rows.index_select(0, self.indices.to(rows.device))


def explored_log_density(
    log_density: Tensor,
    exploration: float = 0.01,
    exploration_space: str = 'density',
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Log of :math:`f + r`, the denominator of Eq. 2, which ranks the images: the lowest stay.

    Args:
        log_density: (N,), natural log.
        exploration: :math:`b`, upper bound of :math:`\alpha` in Eq. 3 (paper: 0.01 or 0.001).
        exploration_space: ``'density'`` is Eq. 3 with one :math:`\alpha_i \sim U(0, b)` per image
            (a single one per batch would not change any ranking); ``'log_density'`` adds
            :math:`b \cdot N(0, 1) \cdot \max|\log f|`, as the released classification code does.
        generator: source of the draws, on the same device.

    Returns:
        (N,); an image without a finite density ranks as the most common of all.
    """
    finite = torch.isfinite(log_density)
    if exploration > 0:
        draw = torch.rand if exploration_space == 'density' else torch.randn
        noise = draw(
            log_density.shape,
            generator=generator,
            device=log_density.device,
            dtype=log_density.dtype,
        )
        if exploration_space == 'density':
            highest = log_density.masked_fill(~finite, -torch.inf).amax()
            log_density = torch.logaddexp(log_density, (exploration * noise).log() + highest)
        else:
            largest = log_density.abs().masked_fill(~finite, 0).amax()
            log_density = log_density + exploration * noise * largest
        # Noise on a density at the edge of float32 leaves it; that is no reason to drop the image.
        log_density = log_density.nan_to_num()
    return log_density.masked_fill(~finite, torch.inf)


def keep_lowest(score: Tensor, num_keep: int) -> Tensor:
    """Ascending positions of the ``num_keep`` lowest scores; of equal ones the first (Eq. 1).

    Args:
        score: (N,).
        num_keep: K, in [1, N].

    Raises:
        ValueError: ``num_keep`` is outside [1, N], or ``score`` is not one-dimensional.
    """
    if score.ndim != 1:
        raise ValueError(f'expected one score per image, shape (N,), got {tuple(score.shape)}')
    check_integer('num_keep', num_keep, low=1)
    if num_keep > len(score):
        raise ValueError(
            f'num_keep={num_keep}: expected at most the number of images, {len(score)}'
        )
    return score.argsort(stable=True)[:num_keep].sort().values


def select_rare(
    log_density: Tensor,
    num_keep: int,
    exploration: float = 0.01,
    exploration_space: str = 'density',
    generator: torch.Generator | None = None,
) -> Tensor:
    """The images that stay: the ``num_keep`` of highest importance (Eq. 1–3).

    Args:
        log_density: (N,), natural log; NaN for an image that is not finite, which is dropped first.
        num_keep: K, in [1, N].
        exploration, exploration_space, generator: see :func:`explored_log_density`; with an
            exploration of 0 the ranking is exact and nothing is drawn.

    Returns:
        (num_keep,) int64, ascending.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """
    check_number('exploration', exploration, 0, float('inf'), open_high=True)
    check_choice('exploration_space', exploration_space, EXPLORATION_SPACES)
    score = explored_log_density(log_density, exploration, exploration_space, generator)
    return keep_lowest(score, num_keep)
