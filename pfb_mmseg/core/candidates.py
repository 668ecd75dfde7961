"""A batch as criteria see it: what one may want to know of it, computed when it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from .representation import spatial_mean


class Candidates:
    """The images of a batch, before it is decided which of them stay.

    A training loop overrides what it can tell of its images; everything else is refused by name,
    so a criterion that asks for too much is found in its first step. What the methods return
    carries no gradient.

    Args:
        num: N, number of images.
        device: where they lie.

    Attributes:
        samples: the N data samples, or their labels in one tensor; None where nobody knows them.
        ready (bool): whether these images can be compared yet; until then every image stays.
    """

    samples: list | Tensor | None = None
    ready = True

    def __init__(self, num: int, device: torch.device) -> None:
        self.num = num
        self.device = device

    def features(self) -> Tensor:
        """(N, C) float32: the output of the blocking point, averaged over space."""
        raise self._unknown('features')

    def exit_losses(self) -> Tensor:
        """(N,) float32: loss of each image at an exit behind the shallow part of the network."""
        raise self._unknown('exit_losses')

    def losses(self) -> Tensor:
        """(N,) float32: loss of each image after a forward pass of the whole network."""
        raise self._unknown('losses')

    def classifier_gradients(self) -> Tensor:
        """(N, P) float32: gradient of each image's loss with respect to the last layer's weight."""
        raise self._unknown('classifier_gradients')

    def _unknown(self, what: str) -> TypeError:
        return TypeError(
            f'{type(self).__name__} tells no {what}() of its images; use a criterion that does '
            'without, or override that method'
        )


class FeatureCandidates(Candidates):
    """Images of which nothing is known but their features at the blocking point, (N, C, H, W), or
    (N, C) if averaged over space already."""

    def __init__(self, features: Tensor) -> None:
        super().__init__(len(features), features.device)
        self._features = features

    def features(self) -> Tensor:
        return spatial_mean(self._features).detach()
