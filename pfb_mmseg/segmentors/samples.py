"""The ground truth of the images that stay, gathered on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


def select_samples(data_samples: list | Tensor, indices: Tensor) -> list | Tensor:
    """Data samples of the kept images, in their original order.

    The host does not know yet which images these are, and need not: label maps of one shape are
    stacked and gathered where they lie. Metainfo that all samples share (shapes, say) stays;
    what differs between them (the file's path) is left out. Samples whose labels cannot be stacked,
    such as boxes, are picked on the host instead, complete but at the price of one synchronisation.

    Args:
        data_samples: N data elements, or tensors, or one tensor (N, ...).
        indices: (K,) int64, ascending.

    Returns:
        K samples of the same type.
    """
    if isinstance(data_samples, Tensor):
        return data_samples.index_select(0, indices.to(data_samples.device))
    try:
        return _gather(data_samples, indices)
    except _NotStackable:
        return [data_samples[i] for i in indices.tolist()]


class _NotStackable(Exception):
    """The samples' labels differ in kind or shape."""


def _gather(values: list, indices: Tensor) -> list:
    first = values[0]
    if isinstance(first, Tensor):
        if any(not isinstance(v, Tensor) or v.shape != first.shape for v in values):
            raise _NotStackable
        return list(torch.stack(values).index_select(0, indices.to(first.device)))
    if not isinstance(first, BaseDataElement):
        raise _NotStackable
    if any(type(v) is not type(first) or v.keys() != first.keys() for v in values):
        raise _NotStackable
    fields = {key: _gather([v.get(key) for v in values], indices) for key, _ in first.items()}
    metainfo = _shared([v.metainfo for v in values])
    return [
        type(first)(metainfo=metainfo, **{key: column[k] for key, column in fields.items()})
        for k in range(len(indices))
    ]


def _shared(metainfos: list[dict]) -> dict:
    first, *others = metainfos
    return {
        key: value
        for key, value in first.items()
        if all(key in other and _equal(value, other[key]) for other in others)
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)
