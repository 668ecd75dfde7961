"""Taking some images out of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def take_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """``rows.index_select(0, indices)``; a channels_last tensor stays channels_last.

    Args:
        rows: (N, ...).
        indices: (K,) int64, on any device.

    Returns:
        (K, ...).
    """
    indices = indices.to(rows.device)
    if rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last):
        return rows.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
    return rows.index_select(0, indices)
