"""How much of each class there is in the images of a batch: pixels of label maps, or images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Rows and columns that are looked at: enough to see a class that covers a thousandth of an image.
_GRID = 64


class ClassCounts(NamedTuple):
    """How much of each class there is in the images of a batch.

    Attributes:
        unit: ``'pixels'`` or ``'images'``.
        counts: (N, C) int64, a row for each image.
    """

    unit: str
    counts: Tensor


def class_counts(data_samples: Sequence[Any], num_classes: int) -> ClassCounts | None:
    """Count pixels of label maps, else images by their class, without waiting for the device.

    Of a map with more than 64 rows every s-th is read, and so of its columns every t-th; each pixel
    then stands for s·t. An image counts for each class that it is labelled with. Labels outside of
    ``range(num_classes)``, such as 255, are left out.

    Args:
        data_samples: N, with ``gt_sem_seg``, (1, H, W), whose labels MMSegmentation calls ``data``
            and MMDetection ``sem_seg``, or with ``gt_label``, (L,).
        num_classes: C.

    Returns:
        The counts, or None if there are no classes, or a sample has neither label.
    """
    if num_classes == 0:
        return None
    maps = [_label_map(sample) for sample in data_samples]
    if all(one is not None for one in maps):
        return ClassCounts('pixels', torch.stack([_pixels(one, num_classes) for one in maps]))
    labels = [getattr(sample, 'gt_label', None) for sample in data_samples]
    if all(label is not None for label in labels):
        lengths = torch.tensor([label.numel() for label in labels])
        image = torch.arange(len(labels)).repeat_interleave(lengths).to(labels[0].device)
        label = _known_or_last(torch.cat([label.flatten() for label in labels]), num_classes)
        counts = label.new_zeros(len(labels), num_classes + 1)
        counts[image, label] = 1
        return ClassCounts('images', counts[:, :num_classes])
    return None


def _label_map(sample: Any) -> Tensor | None:
    labels = getattr(sample, 'gt_sem_seg', None)
    names = ('data', 'sem_seg')
    return next((getattr(labels, name) for name in names if hasattr(labels, name)), None)


def _pixels(labels: Tensor, num_classes: int) -> Tensor:
    """(C,) pixels of each class in one label map."""
    down, right = (-(-size // _GRID) for size in labels.shape[-2:])
    flat = _known_or_last(labels[..., ::down, ::right].flatten(), num_classes)
    counts = flat.new_zeros(num_classes + 1).scatter_add_(0, flat, torch.ones_like(flat))
    return counts[:num_classes] * (down * right)


def _known_or_last(labels: Tensor, num_classes: int) -> Tensor:
    """Whatever is no class goes to one more column: to drop it would wait for the device."""
    labels = labels.long()
    return torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
