"""Which images of a batch stay (Eq. 1), and what makes one rare (Eq. 2–3, in log space)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

LOG_DENSITY = 'log_density'  # the score of the paper's criterion


def take_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """(N, ...) -> (K, ...): ``rows.index_select(0, indices)``, for (K,) int64 on any device; a
    channels_last tensor stays channels_last."""
    indices = indices.to(rows.device)
    if rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last):
        return rows.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
    return rows.index_select(0, indices)


@dataclass(eq=False)
class Selection:
    """Which images of a process's batch stay.

    Attributes:
        num_candidates: N, the number of images that were looked at.
        indices: (K,) int64, ascending positions of the images that stay.
        score: (N,) float32, what the criterion measured, NaN where an image was not finite; None
            where it measured nothing.
        score_name: what that is, see :class:`Criterion`; None where there is no score.
        samples: the N data samples that were looked at, in order, as a list or a tensor; None where
            there are none.
    """

    num_candidates: int
    indices: Tensor
    score: Tensor | None = None
    score_name: str | None = None
    samples: list | Tensor | None = None

    @property
    def num_kept(self) -> int:
        """K, the number of images that stay. Known to the host, as N is."""
        return len(self.indices)

    @cached_property
    def kept(self) -> Tensor:
        """(N,) bool, True for the images that stay."""
        mask = torch.zeros(self.num_candidates, dtype=torch.bool, device=self.indices.device)
        return mask.index_fill_(0, self.indices, True)

    @cached_property
    def on_host(self) -> Selection:
        """The same on the CPU, fetched once for all who ask. Waits for the device."""
        if self.indices.device.type == 'cpu':
            return self
        score = None if self.score is None else self.score.cpu()
        return replace(self, indices=self.indices.cpu(), score=score)

    def take(self, rows: Tensor) -> Tensor:
        """(N, ...) of this batch -> those of the images that stay, on any device."""
        return take_rows(rows, self.indices)


def explored_log_density(
    log_density: Tensor,
    exploration: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Log of :math:`f + r`, the denominator of Eq. 2 with the random term of Eq. 3.

    Each image gets an :math:`\alpha_i \sim U(0, b)` of its own. Eq. 3 can also be read as a single
    one for the batch, which would change no ranking.

    Args:
        log_density: (N,), natural log.
        exploration: :math:`b`, upper bound of :math:`\alpha`, at least 0 (paper: 0.01 or 0.001).
        generator: source of the draws, on the same device. With b = 0 nothing is drawn.

    Returns:
        (N,); the lowest are the most important. NaN for an image that has no density.
    """
    if exploration == 0:
        return log_density
    highest = log_density.nan_to_num(-torch.inf, -torch.inf, -torch.inf).amax()
    alpha = torch.empty_like(log_density).uniform_(0, exploration, generator=generator)
    return torch.logaddexp(log_density, alpha.log_().add_(highest))


def keep_highest(importance: Tensor, num_keep: int) -> Tensor:
    """Ascending positions (K,) of the K = ``num_keep`` images, in [1, N], of highest importance
    (N,) (Eq. 1); of equal ones the first stay, and NaN counts as the lowest of all.

    Raises:
        ValueError: ``importance`` is not one-dimensional.
    """
    if importance.ndim != 1:
        raise ValueError(
            f'expected one importance per image, shape (N,), got {tuple(importance.shape)}'
        )
    # NaN is sorted behind everything else.
    return importance.neg().argsort(stable=True)[:num_keep].sort().values
