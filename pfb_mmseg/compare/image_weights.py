"""Counts the loss of each image of a batch with a weight of its own, and tells what it was."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures.sampler import BasePixelSampler
from torch import Tensor, nn

from ..models.classification import heads as classification
from ..models.segmentation import heads as segmentation


class ImageWeights:
    """Weights of the images of a training step in all heads of a model, set from outside.

    A segmentor's heads ask for the weights where they would ask a pixel sampler such as OHEM's; the
    loss function of a classifier's head gets them as its ``weight``.

    Args:
        model: a segmentor of MMSegmentation or a classifier of MMPretrain.

    Attributes:
        weights (Tensor | None): (N,) of the images of the next step; None: a plain step.

    Raises:
        ValueError: the losses of single images cannot be weighted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights: Tensor | None = None
        self._losses: Tensor | None = None
        if not hasattr(model, 'decode_head'):
            function = classification.loss_function(model)
            function.register_forward_pre_hook(self._add_weights, with_kwargs=True)
            return
        final = segmentation.final_head(model)
        for head in model.modules():
            if not isinstance(head, BaseDecodeHead):
                continue
            if head.sampler is not None:
                raise ValueError(
                    f'{type(head).__name__} weighs its pixels with {type(head.sampler).__name__}, '
                    'beside which images cannot be weighted; remove sampler from the head'
                )
            head.sampler = _HeadWeights(self, head, head is final)

    def take_losses(self) -> Tensor:
        """(N,) losses of the last weighted step's images in the final head, before weighting.

        Raises:
            RuntimeError: the head computes its loss in another way.
        """
        losses, self._losses = self._losses, None
        if losses is None:
            raise RuntimeError(
                'the head weighted no loss of single images in this step: its loss asks no pixel '
                'sampler or loss_module; use another head'
            )
        return losses

    def of(self, scores: Tensor) -> Tensor:
        """The weights (N,) for a loss that is made of these scores (N, ...).

        Raises:
            ValueError: there are not as many.
        """
        if len(self.weights) != len(scores):
            raise ValueError(
                f'{len(self.weights)} weights for {len(scores)} images: something between the '
                'sampler and the loss changes the batch'
            )
        return self.weights.to(scores.device, torch.float32, non_blocking=True)

    def note(self, losses: Tensor) -> None:
        """Add losses (N,) of a step; a head of several scores has several."""
        self._losses = losses if self._losses is None else self._losses + losses

    def _add_weights(
        self, function: nn.Module, args: tuple, options: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self.weights is None:
            return None
        call = classification.LossCall(args[0], args[1:], options)
        with torch.no_grad():
            self.note(classification.image_losses(function, call))
        return args, {**options, 'weight': self.of(args[0])}


class _HeadWeights(BasePixelSampler):
    """Gives all pixels of an image the image's weight, through the seam made for OHEM."""

    def __init__(self, owner: ImageWeights, head: BaseDecodeHead, final: bool) -> None:
        self.owner, self.head, self.final = owner, head, final

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor | None:
        """(N, C, H, W) and (N, 1, H, W) -> (N, H, W)."""
        if self.owner.weights is None:
            return None
        weights = self.owner.of(seg_logit)
        if self.final:
            with torch.no_grad():
                self.owner.note(segmentation.image_losses(self.head, seg_logit, seg_label))
        return weights[:, None, None].expand(len(weights), *seg_label.shape[2:])
