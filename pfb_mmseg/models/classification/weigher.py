"""Lets each image of a batch count with a weight of its own in the loss of a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .heads import LossCall, image_losses, loss_function


class LossWeigher:
    """Hands the weights to the head's loss function, see :class:`Weigher`.

    Args:
        model: a classifier.

    Raises:
        ValueError: its head has no losses of single images.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights: Tensor | None = None
        self._losses: Tensor | None = None
        loss_function(model).register_forward_pre_hook(self._add_weights, with_kwargs=True)

    def weigh(self, weights: Tensor | None) -> None:
        self._weights = weights
        if weights is not None:
            self._losses = None

    @property
    def losses(self) -> Tensor:
        """(N,) losses of the last weighted step's images, unweighted; of several scores the sum.

        Raises:
            RuntimeError: there was no such step.
        """
        if self._losses is None:
            raise RuntimeError('the head asked its loss_module for no loss, so none was weighted')
        return self._losses

    def _add_weights(
        self, function: nn.Module, args: tuple, options: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self._weights is None:
            return None
        scores = args[0]
        if len(self._weights) != len(scores):
            raise ValueError(
                f'{len(self._weights)} weights for {len(scores)} images: something between the '
                'sampler and the loss changes the batch'
            )
        with torch.no_grad():
            losses = image_losses(function, LossCall(scores, args[1:], options))
        self._losses = losses if self._losses is None else self._losses + losses
        weights = self._weights.to(scores.device, torch.float32, non_blocking=True)
        return args, {**options, 'weight': weights}
