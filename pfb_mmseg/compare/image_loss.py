"""ImageLossMixin: a model that tells the loss of each image, and counts each with a weight."""

from __future__ import annotations

from typing import Any

from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from ..models import task_of


class ImageLossMixin:
    """Rescales the loss of each image, in all heads, and reports that of the final head.

    ``class MyModel(ImageLossMixin, AnyModel)``, of a kind in ``pfb_mmseg.models.TASKS``;
    ScoreSamplerHook sets the weights. Without the hook, the model is its host.

    Raises:
        ValueError: the losses of single images cannot be weighted, see :meth:`Task.build_weigher`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weigher = task_of(self).build_weigher()

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
