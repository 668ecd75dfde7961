"""ImageLossMixin: a model that tells the loss of each image, and counts each with a weight."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures.sampler import BasePixelSampler
from torch import Tensor, nn

from ..segmentors.heads import final_head, image_losses


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


class ImageLossMixin:
    """Rescales the loss of each image, in all heads, and reports that of the decode head.

    ``class MySegmentor(ImageLossMixin, AnySegmentor)``; ScoreSamplerHook sets the weights. Without
    the hook, the model is its host.

    Raises:
        ValueError: a head has a pixel sampler already, or the decode head is no BaseDecodeHead.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        final_head(self)
        for head in self._loss_heads():
            if head.sampler is not None:
                raise ValueError(
                    f'{type(head).__name__} weighs its pixels with {type(head.sampler).__name__}; '
                    f'{type(self).__name__} needs that place: remove sampler from the head'
                )
            head.sampler = ImageWeights(head)

    def weigh_images(self, weights: Tensor | None) -> None:
        """Set the weights (N,) of the images of the next steps; None for plain steps."""
        for head in self._loss_heads():
            head.sampler.weights = weights

    @property
    def image_losses(self) -> Tensor:
        """(N,) losses of the last weighted step's images in the decode head, unweighted.

        Raises:
            RuntimeError: there was no such step, or the head's loss asks no pixel sampler.
        """
        head = final_head(self)
        if head.sampler.losses is None:
            raise RuntimeError(
                f'{type(head).__name__} computed no loss of single images: its loss_by_feat does '
                f'not use a pixel sampler, so {type(self).__name__} cannot weight it; use another '
                'decode head'
            )
        return head.sampler.losses

    def _loss_heads(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, BaseDecodeHead)]


@MODELS.register_module()
class ImageLossEncoderDecoder(ImageLossMixin, EncoderDecoder):
    """EncoderDecoder for a ScoreSampler and its hook."""


@MODELS.register_module()
class ImageLossCascadeEncoderDecoder(ImageLossMixin, CascadeEncoderDecoder):
    """CascadeEncoderDecoder, likewise."""
