"""The ground truth of the images that stay, gathered on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..core import Selection


def select_samples(data_samples: list | Tensor, selection: Selection) -> list | Tensor:
    """Data samples of the kept images, in their order.

    The host does not know yet which images these are, and need not: label maps of one shape are
    stacked and gathered where they lie. Metainfo that all samples share (shapes, say) stays;
    what differs between them (the file's path) is left out. Samples whose labels cannot be stacked,
    such as boxes, are picked on the host instead, complete but at the price of one synchronisation.

    Args:
        data_samples: N data elements, or tensors, or one tensor (N, ...).
        selection: K of these N, or of those of all processes.

    Returns:
        K samples of the same type.

    Raises:
        ValueError: the samples would have to go to other processes and cannot be stacked.
    """
    if isinstance(data_samples, Tensor):
        return selection.take(data_samples)
    try:
        return _gather(data_samples, selection)
    except _NotStackable:
        if selection.exchange is not None:
            raise ValueError(
                "selection_scope='global' hands labels from rank to rank, which takes tensors of "
                f'one shape; those of {type(data_samples[0]).__name__} differ in kind or shape. '
                "Crop or pad to one size, or choose 'rank'"
            ) from None
        return [data_samples[i] for i in selection.indices.tolist()]


class _NotStackable(Exception):
    """The samples' labels differ in kind or shape."""


def _gather(values: list, selection: Selection) -> list:
    first = values[0]
    if isinstance(first, Tensor):
        if any(not isinstance(v, Tensor) or v.shape != first.shape for v in values):
            raise _NotStackable
        return list(selection.take(torch.stack(values)))
    if not isinstance(first, BaseDataElement):
        raise _NotStackable
    if any(type(v) is not type(first) or v.keys() != first.keys() for v in values):
        raise _NotStackable
    fields = {key: _gather([v.get(key) for v in values], selection) for key, _ in first.items()}
    metainfo = _shared([v.metainfo for v in values])
    return [
        type(first)(metainfo=metainfo, **{key: column[k] for key, column in fields.items()})
        for k in range(len(selection.indices))
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
