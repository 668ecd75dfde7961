"""The classifier of MMPretrain that tells the loss of each image; imported when it is asked for."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..models.classification.heads import LossCall, image_losses, loss_function
from .image_loss import ImageLossMixin, check_as_many


class LossWeigher:
    """Hands the weights to the head's loss function, see :class:`.image_loss.Weigher`.

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
        check_as_many(self._weights, scores)
        with torch.no_grad():
            losses = image_losses(function, LossCall(scores, args[1:], options))
        self._losses = losses if self._losses is None else self._losses + losses
        weights = self._weights.to(scores.device, torch.float32, non_blocking=True)
        return args, {**options, 'weight': weights}


@MODELS.register_module()
class ImageLossImageClassifier(ImageLossMixin, ImageClassifier):
    """ImageClassifier for a ScoreSampler and its hook."""

    weigher_type = LossWeigher
