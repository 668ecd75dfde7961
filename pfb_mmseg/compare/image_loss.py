"""ImageLossMixin: a model that tells the loss of each image, and counts each with a weight."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures.sampler import BasePixelSampler
from torch import Tensor, nn

from ..models.segmentation.heads import final_head, image_losses


class Weigher(Protocol):
    """Multiplies what each image adds to the loss of its model's training steps.

    Attributes:
        losses: (N,) of the images of the last weighted step, before weighting.
    """

    losses: Tensor

    def weigh(self, weights: Tensor | None) -> None:
        """Set the weights (N,) of the images of the next steps; None: plain steps."""


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
        check_as_many(self.weights, seg_logit)
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


class ImageLossMixin:
    """Rescales the loss of each image, in all heads, and reports that of the final head.

    ``class MyModel(ImageLossMixin, AnySegmentor)``; ScoreSamplerHook sets the weights. Without the
    hook, the model is its host.

    Attributes:
        weigher_type: of the heads of this kind of model; gets the model.

    Raises:
        ValueError: the losses of single images cannot be weighted.
    """

    weigher_type: type[Weigher] = PixelWeigher

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weigher = self.weigher_type(self)

    def weigh_images(self, weights: Tensor | None) -> None:
        """Set the weights (N,) of the images of the next steps; None for plain steps."""
        self._weigher.weigh(weights)

    @property
    def image_losses(self) -> Tensor:
        """(N,) losses of the last weighted step's images in the final head, unweighted.

        Raises:
            RuntimeError: there was no such step, or the head computes its loss in another way.
        """
        return self._weigher.losses


@MODELS.register_module()
class ImageLossEncoderDecoder(ImageLossMixin, EncoderDecoder):
    """EncoderDecoder for a ScoreSampler and its hook."""


@MODELS.register_module()
class ImageLossCascadeEncoderDecoder(ImageLossMixin, CascadeEncoderDecoder):
    """CascadeEncoderDecoder, likewise."""


def check_as_many(weights: Tensor, scores: Tensor) -> None:
    """Compare the number of weights with that of the images whose scores a loss is made of.

    Raises:
        ValueError: they differ.
    """
    if len(weights) != len(scores):
        raise ValueError(
            f'{len(weights)} weights for {len(scores)} images: something between the sampler and '
            'the loss changes the batch'
        )
