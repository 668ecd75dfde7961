"""Pixels of each class in the label maps of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Rows and columns that are looked at: enough to see a class that covers a thousandth of an image.
_GRID = 64


def class_pixels(data_samples: Sequence[Any], num_classes: int) -> Tensor | None:
    """Count each image's pixels by class, where its labels lie and without waiting for them.

    Of a map with more than 64 rows every s-th is read, and so of its columns every t-th; each pixel
    then stands for s·t.

    Args:
        data_samples: N samples with ``gt_sem_seg``, (1, H, W) integers. Labels outside of
            ``range(num_classes)``, such as 255, are left out.
        num_classes: C.

    Returns:
        (N, C) int64, or None if any sample has no label map.
    """
    labels = [getattr(sample, 'gt_sem_seg', None) for sample in data_samples]
    if num_classes == 0 or any(label is None for label in labels):
        return None
    maps = [label.data for label in labels]
    if len({labels.shape for labels in maps}) > 1:
        return torch.cat([_count([labels], num_classes) for labels in maps])
    return _count(maps, num_classes)


def _count(maps: Sequence[Tensor], num_classes: int) -> Tensor:
    """(N, C) of N label maps of one shape."""
    down, right = (-(-size // _GRID) for size in maps[0].shape[-2:])
    flat = torch.stack([labels[..., ::down, ::right].flatten() for labels in maps]).long()
    # Whatever is no class goes to one more column, which is cut off; bincount would wait.
    flat = torch.where((flat >= 0) & (flat < num_classes), flat, num_classes)
    counts = flat.new_zeros(len(flat), num_classes + 1)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    return counts[:, :num_classes] * (down * right)
