"""Lets each image of a batch count with a weight of its own in all heads of a segmentor."""

from __future__ import annotations

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures.sampler import BasePixelSampler
from torch import Tensor, nn

from .heads import final_head, image_losses


class ImageWeights(BasePixelSampler):
    """Gives all pixels of an image the image's weight, through the seam made for OHEM.

    Args:
        head: whose loss is weighted.

    Attributes:
        weights (Tensor | None): (N,) of the next step; None: a plain step.
        losses (Tensor | None): (N,) of the last weighted step, before weighting.
    """

    def __init__(self, head: BaseDecodeHead) -> None:
        super().__init__()
        self.head = head
        self.weights: Tensor | None = None
        self.losses: Tensor | None = None

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor | None:
        """(N, C, H, W) and (N, 1, H, W) -> (N, H, W)."""
        if self.weights is None:
            return None
        if len(self.weights) != len(seg_logit):
            raise ValueError(
                f'{len(self.weights)} weights for {len(seg_logit)} images: something between the '
                'sampler and the loss changes the batch'
            )
        with torch.no_grad():
            self.losses = image_losses(self.head, seg_logit, seg_label)
        weights = self.weights.to(seg_logit.device, torch.float32, non_blocking=True)
        return weights[:, None, None].expand(len(weights), *seg_label.shape[2:])


class PixelWeigher:
    """Weighs the pixels of all heads, see :class:`Weigher`.

    Args:
        model: a segmentor.

    Raises:
        ValueError: a head has a pixel sampler already, or the decode head is no BaseDecodeHead.
    """

    def __init__(self, model: nn.Module) -> None:
        self._final = final_head(model)
        self._heads = [module for module in model.modules() if isinstance(module, BaseDecodeHead)]
        for head in self._heads:
            if head.sampler is not None:
                raise ValueError(
                    f'{type(head).__name__} weighs its pixels with {type(head.sampler).__name__}; '
                    f'{type(model).__name__} needs that place: remove sampler from the head'
                )
            head.sampler = ImageWeights(head)

    def weigh(self, weights: Tensor | None) -> None:
        for head in self._heads:
            head.sampler.weights = weights

    @property
    def losses(self) -> Tensor:
        """(N,) losses of the last weighted step's images in the decode head, unweighted.

        Raises:
            RuntimeError: there was no such step, or the head's loss asks no pixel sampler.
        """
        if self._final.sampler.losses is None:
            raise RuntimeError(
                f'{type(self._final).__name__} computed no loss of single images: its loss_by_feat '
                'does not use a pixel sampler, so it cannot be weighted; use another decode head'
            )
        return self._final.sampler.losses
