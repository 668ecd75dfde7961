"""The early exit of a classifier: a linear layer on the pooled features of the blocked stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...blocking import BlockingPoint
from ...core.ranks import Ranks
from ..exits import OwnExit

_EPS = 1e-5


class Standardise(nn.Module):
    """Each feature less its mean over the batch, in units of its deviation, so that one learning
    rate suits all backbones."""

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = vectors - vectors.mean(dim=0)
        return vectors / (vectors.square().mean(dim=0) + _EPS).sqrt()


class LinearExit(OwnExit):
    """Tells classes from the features at the blocking point, averaged over space.

    Args:
        point: where images are blocked.
        ranks: the processes that train together.
        seed: of the initial weights.
        num_classes: that the model tells apart.
        several: whether an image may be of several classes, or none.
    """

    def __init__(
        self, point: BlockingPoint, ranks: Ranks, seed: int, num_classes: int, several: bool
    ) -> None:
        super().__init__(point, ranks, seed)
        self._num_classes = num_classes
        self._several = several

    def build(self) -> nn.Module:
        return nn.Sequential(Standardise(), nn.Linear(self.point.num_channels, self._num_classes))

    def features(self, output: Any, size: tuple[int, int]) -> Tensor:
        return self.point.vectors(output)

    def sums(self, logits: Tensor, samples: list | Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy; the mean counts every image once."""
        shares = class_shares(samples, self._num_classes)
        if self._several:
            losses = F.binary_cross_entropy_with_logits(logits, shares, reduction='none')
            losses = losses.sum(dim=1)
        else:
            losses = F.cross_entropy(logits, shares, reduction='none')
        return losses, torch.ones_like(losses)


def class_shares(data_samples: list, num_classes: int) -> Tensor:
    """(N, C) float32, what of each image is of which class: its ``gt_score``, shares as Mixup and
    CutMix make them, of which negative ones mark what is not labelled and become 0; or one for its
    ``gt_label``, a class or several. ValueError if a sample has neither."""
    if any('gt_score' not in sample and 'gt_label' not in sample for sample in data_samples):
        raise ValueError(
            'images are compared by the loss of their gt_label or gt_score, which a data sample '
            "lacks; use a criterion that needs no labels, such as 'rare'"
        )
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples]).float().clamp(min=0)
    labels = [sample.gt_label for sample in data_samples]
    if all(len(label) == 1 for label in labels):
        return _one_hot(torch.stack(labels), num_classes)
    return torch.cat([_one_hot(label[None], num_classes) for label in labels])


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(N, L) classes -> (N, C) float32; unlike torch's own, waits for no device."""
    shares = torch.zeros(len(labels), num_classes, device=labels.device)
    return shares.scatter_(1, labels.long(), 1.0)
