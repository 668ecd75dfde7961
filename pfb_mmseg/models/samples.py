"""The ground truth of the images that stay, gathered where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from ..core import Decision


def select_samples(data_samples: list | Tensor, decision: Decision) -> list | Tensor:
    """Of N data elements, or tensors, or one tensor (N, ...), those of the images that stay.

    On a CPU the samples are picked as they are. On any other device the host does not know yet
    which images stay, and need not: label maps of one shape are stacked and gathered where they
    lie, and of the metainfo stays what all samples share (shapes, say), while what differs between
    them (the file's path) is left out. Samples whose labels cannot be stacked, such as boxes, are
    picked on the host after all, complete but at the price of one synchronisation.
    """
    if isinstance(data_samples, Tensor):
        return decision.take(data_samples)
    if decision.selection.indices.device.type == 'cpu':
        return _pick(data_samples, decision)
    try:
        return _gather(data_samples, decision)
    except _NotStackable:
        return _pick(data_samples, decision)


def valid_shares(data_samples: list | Tensor, size: tuple[int, int]) -> Tensor | None:
    """Which share of the height and width of each image of (H, W) is no padding: (N, 2) floats in
    (0, 1] on the CPU; None if nothing was padded.

    Samples of padded images have ``img_shape`` and ``pad_shape`` in their metainfo, as the data
    preprocessors of MMSegmentation and MMDetection write them.
    """
    if isinstance(data_samples, Tensor):
        return None
    metainfos = [getattr(sample, 'metainfo', {}) for sample in data_samples]
    if any('pad_shape' not in one or 'img_shape' not in one for one in metainfos):
        return None
    shapes = [tuple(one['img_shape'][:2]) for one in metainfos]
    if all(shape == size for shape in shapes):
        return None
    return (torch.tensor(shapes) / torch.tensor(size)).clamp(max=1)


class _NotStackable(Exception):
    """The samples' labels differ in kind or shape."""


def _pick(data_samples: list, decision: Decision) -> list:
    return [data_samples[i] for i in decision.selection.indices.tolist()]


def _gather(values: list, decision: Decision) -> list:
    first = values[0]
    if isinstance(first, Tensor):
        if any(not isinstance(v, Tensor) or v.shape != first.shape for v in values):
            raise _NotStackable
        return list(decision.take(torch.stack(values)))
    # Instances have equal numbers of rows by chance alone, and heads read their images' metainfo.
    if not isinstance(first, BaseDataElement) or isinstance(first, InstanceData):
        raise _NotStackable
    if any(type(v) is not type(first) or set(v.keys()) != set(first.keys()) for v in values):
        raise _NotStackable
    fields = {key: _gather([v.get(key) for v in values], decision) for key in first.keys()}
    metainfo = _shared([v.metainfo for v in values])
    return [
        type(first)(metainfo=metainfo, **{key: column[k] for key, column in fields.items()})
        for k in range(decision.selection.num_kept)
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
