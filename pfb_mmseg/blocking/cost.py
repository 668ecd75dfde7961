"""What the part of a forward pass behind the blocking point costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .devices import random_state_kept
from .point import BlockingPoint
from .scoring import scoring_mode


def share_behind(
    model: nn.Module, point: BlockingPoint, forward: Callable[[Tensor], Any]
) -> float | None:
    """Share of a forward pass's floating-point operations that lies behind the blocking point.

    Args:
        model: what ``forward`` runs.
        point: inside the model's encoder, prepared.
        forward: the whole pass, images (1, C, H, W) in.

    Returns:
        A number in [0, 1]; None if ``forward`` cannot run on a blank image.
    """
    image = point.blank_images(1)
    # Some heads draw random numbers in every pass: training shall not notice this one.
    with random_state_kept(image.device), scoring_mode(model, batch_statistics=False):
        try:
            whole = _flops(forward, image)
            return 1 - _flops(point.score, image) / whole if whole else None
        except Exception:  # a model of any kind, and only a figure for the log
            return None


def _flops(run: Callable[[Tensor], Any], image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        run(image)
    return counter.get_total_flops()
