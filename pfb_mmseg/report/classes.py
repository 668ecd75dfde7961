"""How much of each class there is in the images of a batch: pixels of label maps, or images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rows and columns that are looked at: enough to see a class that covers a thousandth of an image.
_GRID = 64


def class_counts(data_samples: Sequence[Any], num_classes: int) -> tuple[str, np.ndarray] | None:
    """Count pixels of label maps, else images by their class. Waits for the device.

    Of a map with more than 64 rows every s-th is read, and so of its columns every t-th; each pixel
    then stands for s·t. An image counts once for each class that it is labelled with. Labels
    outside of ``range(num_classes)``, such as 255, are left out.

    Args:
        data_samples: N, with ``gt_sem_seg``, (1, H, W), whose labels MMSegmentation calls ``data``
            and MMDetection ``sem_seg``, or with ``gt_label``, (L,).
        num_classes: C.

    Returns:
        What is counted, ``'pixels'`` or ``'images'``, and the counts, (N, C) int64. None if there
        are no classes, or a sample has neither label.
    """
    if num_classes == 0:
        return None
    maps = [_label_map(sample) for sample in data_samples]
    if all(labels is not None for labels in maps):
        return 'pixels', np.stack([_pixels(labels, num_classes) for labels in maps])
    labels = [getattr(sample, 'gt_label', None) for sample in data_samples]
    if all(label is not None for label in labels):
        return 'images', np.stack([_count(label, num_classes) for label in labels]).clip(max=1)
    return None


def _label_map(sample: Any) -> Tensor | None:
    labels = getattr(sample, 'gt_sem_seg', None)
    return getattr(labels, 'data', getattr(labels, 'sem_seg', None))


def _pixels(labels: Tensor, num_classes: int) -> np.ndarray:
    down, right = (-(-size // _GRID) for size in labels.shape[-2:])
    return _count(labels[..., ::down, ::right], num_classes) * (down * right)


def _count(labels: Tensor, num_classes: int) -> np.ndarray:
    labels = labels.cpu().long()
    known = labels[(labels >= 0) & (labels < num_classes)]
    return torch.bincount(known, minlength=num_classes).numpy()
