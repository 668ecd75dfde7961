"""How many images of a batch stay in an iteration (Eq. 1)."""

from __future__ import annotations

from fractions import Fraction

from .checks import check_integer, check_number


class KeepQuota:
    """Numbers of images to keep, whose mean is exactly ``(1 - prune_ratio) * batch_size``.

    Where that is no whole number, iterations keep one image more or less. Which of them do is a
    function of the iteration alone: all ranks agree on it without talking, and a resumed run goes
    on where it stopped.

    Args:
        prune_ratio: p, in [0, 1).
        min_keep: the least number of images that stay, at least 1. Where ``(1 - p) * batch_size``
            is smaller, ``min_keep`` images stay, and fewer than p are pruned.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(self, prune_ratio: float, min_keep: int = 1) -> None:
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
        check_integer('min_keep', min_keep, low=1)
        self.prune_ratio = prune_ratio
        self.min_keep = min_keep
        # 0.3 means three tenths, not the nearest binary number: rounding would add up.
        self._keep_ratio = 1 - Fraction(str(float(prune_ratio)))
        self._means: dict[int, Fraction] = {}  # by batch size, since fractions are slow

    def mean(self, batch_size: int) -> Fraction:
        """Exact mean of :meth:`keep` over the iterations."""
        if batch_size not in self._means:
            kept = max(self._keep_ratio * batch_size, Fraction(self.min_keep))
            self._means[batch_size] = min(kept, Fraction(batch_size))
        return self._means[batch_size]

    def keep(self, iteration: int, batch_size: int) -> int:
        """Number of images that stay of N >= 1 in iteration t >= 0, in [1, batch_size]."""
        whole, parts = self.mean(batch_size).as_integer_ratio()
        return (iteration + 1) * whole // parts - iteration * whole // parts
