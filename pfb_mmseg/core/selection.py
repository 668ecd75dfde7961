"""Which samples stay, and what makes one rare. Eq. 1–3 of the paper, in log space."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .checks import check_choice, check_integer, check_number
from .rows import take_rows

EXPLORATION_SPACES = ('density', 'log_density')
LOG_DENSITY = 'log_density'  # the score of the paper's criterion


class Selection:
    """Which images of a process's batch stay.

    Attributes:
        kept: (N,) bool, True for the images that stay, with whichever process.
        num_candidates: N, the number of images that were looked at.
        num_kept: K, the number of images that this process goes on with. Both known to the host.
        score: (N,) float32, what the criterion measured, NaN where an image was not finite; None
            where it measured nothing.
        score_name: what that is, see :class:`Criterion`; None where there is no score.
        samples: N data samples that were looked at, or their labels in one tensor; None where only
            features were.
    """

    def __init__(
        self,
        num_candidates: int,
        num_kept: int,
        *,
        kept: Tensor | None = None,
        indices: Tensor | None = None,
        score: Tensor | None = None,
        score_name: str | None = None,
        samples: list | Tensor | None = None,
    ) -> None:
        """One of ``kept`` and ``indices`` is given, the other follows from it."""
        self.num_candidates = num_candidates
        self.num_kept = num_kept
        self.score = score
        self.score_name = score_name
        self.samples = samples
        self._kept = kept
        self._indices = indices

    @cached_property
    def kept(self) -> Tensor:
        if self._kept is not None:
            return self._kept
        mask = torch.zeros(self.num_candidates, dtype=torch.bool, device=self._indices.device)
        return mask.index_fill_(0, self._indices, True)

    @cached_property
    def indices(self) -> Tensor:
        """Ascending positions, int64, of the images that stay: (K,).

        With ``selection_scope='global'`` their number is known to the device only: looking at them
        waits for it.
        """
        return self.kept.nonzero().flatten() if self._indices is None else self._indices

    @cached_property
    def on_host(self) -> Selection:
        """The same on the CPU, fetched once for all who ask. Waits for the device."""
        if self.kept.device.type == 'cpu':
            return self
        return Selection(
            self.num_candidates,
            self.num_kept,
            kept=self.kept.cpu(),
            score=None if self.score is None else self.score.cpu(),
            score_name=self.score_name,
            samples=self.samples,
        )

    @property
    def log_density(self) -> Tensor | None:
        """The score, if it is a log density; its name in version 0.1."""
        return self.score if self.score_name == LOG_DENSITY else None

    def take(self, rows: Tensor) -> Tensor:
        """(N, ...) of this batch -> those of the images that stay, on any device."""
        return take_rows(rows, self.indices)


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
        (N,); NaN for an image that has none.
    """
    if exploration == 0:
        return log_density
    if exploration_space == 'density':
        highest = log_density.nan_to_num(-torch.inf, -torch.inf, -torch.inf).amax()
        alpha = torch.empty_like(log_density).uniform_(0, exploration, generator=generator)
        return torch.logaddexp(log_density, alpha.log_().add_(highest))
    largest = log_density.nan_to_num(0, 0, 0).abs().amax()
    noise = torch.empty_like(log_density).normal_(generator=generator)
    # Noise on a density at the edge of float32 leaves it; that is no reason to drop the image.
    limit = torch.finfo(log_density.dtype).max
    return (log_density + exploration * noise * largest).clamp(-limit, limit)


def keep_lowest(score: Tensor, num_keep: int) -> Tensor:
    """Ascending positions of the ``num_keep`` lowest scores; of equal ones the first (Eq. 1).

    Args:
        score: (N,); NaN counts as the highest of all, as PyTorch sorts it.
        num_keep: K, in [1, N].

    Raises:
        ValueError: ``num_keep`` is outside [1, N], or ``score`` is not one-dimensional.
    """
    return _first(score, num_keep, descending=False)


def keep_highest(importance: Tensor, num_keep: int) -> Tensor:
    """Ascending positions of the ``num_keep`` of highest importance; of equal ones the first.

    Args:
        importance: (N,); NaN counts as the lowest of all.
        num_keep: K, in [1, N].

    Raises:
        ValueError: see :func:`keep_lowest`.
    """
    known = importance.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return _first(known, num_keep, descending=True)


def _first(score: Tensor, num_keep: int, descending: bool) -> Tensor:
    if score.ndim != 1:
        raise ValueError(f'expected one score per image, shape (N,), got {tuple(score.shape)}')
    check_integer('num_keep', num_keep, low=1)
    if num_keep > len(score):
        raise ValueError(
            f'num_keep={num_keep}: expected at most the number of images, {len(score)}'
        )
    return score.argsort(descending=descending, stable=True)[:num_keep].sort().values


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
