"""What the labels of a batch tell of its classes: pixels of label maps, or images."""

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
    """Pixels of label maps, else images by their class; None if there is no label to count.

    Args:
        data_samples: N, of segmentation or classification.
        num_classes: C.
    """
    for unit, count in (('pixels', class_pixels), ('images', class_images)):
        counts = count(data_samples, num_classes)
        if counts is not None:
            return ClassCounts(unit, counts)
    return None


def class_pixels(data_samples: Sequence[Any], num_classes: int) -> Tensor | None:
    """Count each image's pixels by class, where its labels lie and without waiting for them.

    Of a map with more than 64 rows every s-th is read, and so of its columns every t-th; each pixel
    then stands for s·t.

    Args:
        data_samples: N samples with ``gt_sem_seg``, (1, H, W) integers, which MMSegmentation calls
            ``data`` in there and MMDetection ``sem_seg``. Labels outside of ``range(num_classes)``,
            such as 255, are left out.
        num_classes: C.

    Returns:
        (N, C) int64, or None if any sample has no label map.
    """
    maps = [_label_map(sample) for sample in data_samples]
    if num_classes == 0 or any(labels is None for labels in maps):
        return None
    if len({labels.shape for labels in maps}) > 1:
        return torch.cat([_count([labels], num_classes) for labels in maps])
    return _count(maps, num_classes)


def class_images(data_samples: Sequence[Any], num_classes: int) -> Tensor | None:
    """Tell the classes of each image: one, several, or none.

    Args:
        data_samples: N samples with ``gt_label``, (L,) integers; those outside of
            ``range(num_classes)`` are left out. Or with ``gt_score`` alone, (C,) shares of the
            classes: the largest counts, and all that are as large, as those of several labels are.
        num_classes: C.

    Returns:
        (N, C) int64 of zeros and ones, or None if the samples do not all have the one or the other.
    """
    if num_classes == 0:
        return None
    labels = [getattr(sample, 'gt_label', None) for sample in data_samples]
    if all(label is not None for label in labels):
        lengths = torch.tensor([label.numel() for label in labels])
        image = torch.arange(len(labels)).repeat_interleave(lengths).to(labels[0].device)
        label = torch.cat([label.flatten() for label in labels]).long()
        counts = label.new_zeros(len(labels), num_classes + 1)
        counts[image, _known_or_last(label, num_classes)] = 1
        return counts[:, :num_classes]
    scores = [getattr(sample, 'gt_score', None) for sample in data_samples]
    if any(score is None or len(score) != num_classes for score in scores):
        return None
    shares = torch.stack(scores)
    return ((shares == shares.amax(dim=1, keepdim=True)) & (shares > 0)).long()


def _label_map(sample: Any) -> Tensor | None:
    labels = getattr(sample, 'gt_sem_seg', None)
    names = ('data', 'sem_seg')
    return next((getattr(labels, name) for name in names if hasattr(labels, name)), None)


def _known_or_last(labels: Tensor, num_classes: int) -> Tensor:
    """Whatever is no class goes to one more column, to be cut off; to drop it would wait."""
    return torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)


def _count(maps: Sequence[Tensor], num_classes: int) -> Tensor:
    """(N, C) of N label maps of one shape."""
    down, right = (-(-size // _GRID) for size in maps[0].shape[-2:])
    flat = torch.stack([labels[..., ::down, ::right].flatten() for labels in maps]).long()
    flat = _known_or_last(flat, num_classes)
    counts = flat.new_zeros(len(flat), num_classes + 1)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    return counts[:, :num_classes] * (down * right)
