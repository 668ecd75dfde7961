"""What the parts of a forward pass cost, in floating-point operations on a blank image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .devices import random_state_kept
from .point import BlockingPoint
from .scoring import scoring_mode


class StepCost(NamedTuple):
    """Floating-point operations for one blank image.

    Attributes:
        whole: of a forward pass of the whole model. A training step is taken as three of them.
        shallow: up to the blocking point.
        exit: of the exit there; 0 if there is none.
    """

    whole: int
    shallow: int
    exit: int = 0

    @property
    def share_behind(self) -> float:
        """Share of a forward pass that lies behind the blocking point, in [0, 1]."""
        return 1 - self.shallow / self.whole

    def scoring(self, scoring_pass: str, score_scale: float, taught: bool) -> float:
        """What comparing an image costs, as a share of a training step on it.

        Args:
            scoring_pass: see :class:`Criterion`.
            score_scale: relative size of the images in a pass of the shallow part.
            taught: whether the exit's loss goes back through the shallow part.
        """
        shallow, exit = (score_scale**2 * part / self.whole for part in (self.shallow, self.exit))
        if taught:  # forward once, backward twice as much
            return shallow + exit
        passes = {'none': 0, 'shallow': shallow, 'exit': shallow + exit, 'whole': 1}
        return passes[scoring_pass] / 3


def step_cost(
    model: nn.Module, point: BlockingPoint, forward: Callable[[Tensor], Any]
) -> StepCost | None:
    """Count the operations of a forward pass of the whole model on (1, C, H, W), with a prepared
    point in its encoder; None if it cannot run on a blank image."""
    image = point.blank_images(1)
    # Some heads draw random numbers in every pass: training shall not notice this one.
    with random_state_kept(image.device), scoring_mode(model, batch_statistics=False):
        try:
            whole = count_flops(lambda: forward(image))
            return StepCost(whole, count_flops(lambda: point.score(image))) if whole else None
        except Exception:  # a model of any kind, and only a figure for the log
            return None


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of ``run()``."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
