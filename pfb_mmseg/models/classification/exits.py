"""The exit of a classifier: a linear layer on the pooled features of the blocked stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...blocking import BlockingPoint
from ...core.checks import check_integer
from ..exits import Exit, channels_at

_EPS = 1e-5


class LinearExit(Exit):
    """Tells classes from the features at the blocking point, averaged over space and detached.

    They are standardised over the batch, so that one learning rate suits all backbones. Its loss is
    trained on the images that stay, by the run's optimizer; the rest of the model gets no gradient
    from it.

    Args:
        point: where images are blocked.
        num_classes: that the model tells apart.
        several: whether an image may be of several classes, or none.
        in_channels: at the blocking point; None finds out by a pass over a blank image.

    Raises:
        TypeError, ValueError: an argument is outside its range, or ``in_channels`` is needed and
            cannot be found out.
    """

    trained = True
    compares_vectors = True

    def __init__(
        self,
        point: BlockingPoint,
        num_classes: int,
        several: bool = False,
        in_channels: int | None = None,
    ) -> None:
        super().__init__(point)
        check_integer('num_classes', num_classes, low=1)
        self.several = several
        self.classifier = nn.Linear(channels_at(point, in_channels), num_classes)

    def prepare(self, like: Tensor | None = None) -> None:
        """Take over what the blocking point found out.

        Raises:
            ValueError: there are others than ``in_channels`` says.
        """
        self.point.prepare(like)
        found = self.classifier.in_features
        if found != self.point.num_channels:
            raise ValueError(
                f'{self.point.path} has {self.point.num_channels} channels, the exit reads '
                f'{found}; choose another block_after or in_channels'
            )

    def losses(self, vectors: Tensor, data_samples: list | Tensor, size: tuple[int, int]) -> Tensor:
        """(N,) cross entropy of each image, see :class:`Exit`."""
        # One NaN would reach all images through the mean, and the weights through a gradient of 0.
        finite = vectors.isfinite().all(dim=1)
        vectors = torch.where(finite[:, None], vectors, 0).detach()
        vectors = vectors - vectors.mean(dim=0)
        vectors = vectors / (vectors.square().mean(dim=0) + _EPS).sqrt()
        shares = class_shares(data_samples, self.classifier.out_features)
        with torch.enable_grad():
            scores = self.classifier(vectors).float()
            if self.several:
                losses = F.binary_cross_entropy_with_logits(scores, shares, reduction='none')
                losses = losses.sum(dim=1)
            else:
                losses = F.cross_entropy(scores, shares, reduction='none')
            return losses.masked_fill(~finite, torch.nan)

    def flops(self, like: Tensor | None = None) -> float:
        return 2 * self.classifier.in_features * self.classifier.out_features


def class_shares(data_samples: list, num_classes: int) -> Tensor:
    """What of each image is of which class.

    Args:
        data_samples: N of MMPretrain, with ``gt_score``, (C,) shares of the classes as Mixup and
            CutMix make them, or ``gt_label``, its class or classes.
        num_classes: C.

    Returns:
        (N, C) float32; negative shares, which mark what is not labelled, are 0.

    Raises:
        ValueError: a sample has neither.
    """
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
