"""The ground truth of the images that stay, gathered where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..core import Decision


def select_samples(data_samples: list | Tensor, decision: Decision) -> list | Tensor:
    """Data samples of the images that a process goes on with, in their order.

    On a CPU the samples are picked as they are. On any other device the host does not know yet
    which images stay, and need not: label maps of one shape are stacked and gathered where they
    lie, and of the metainfo stays what all samples share (shapes, say), while what differs between
    them (the file's path) is left out. Samples whose labels cannot be stacked, such as boxes, are
    picked on the host after all, complete but at the price of one synchronisation. So are, with
    ``selection_scope='global'``, none: labels travel, metainfo that differs stays behind.

    Args:
        data_samples: N data elements, or tensors, or one tensor (N, ...).
        decision: about these N, or those of all processes.

    Returns:
        K samples of the same type.

    Raises:
        ValueError: the samples would have to go to other processes and cannot be stacked.
    """
    if isinstance(data_samples, Tensor):
        return decision.take(data_samples)
    if decision.exchange is None and _on_host(decision.selection.indices):
        return _pick(data_samples, decision)
    try:
        return _gather(data_samples, decision)
    except _NotStackable:
        if decision.exchange is not None:
            raise ValueError(
                "selection_scope='global' hands labels from rank to rank, which takes tensors of "
                f'one shape; those of {type(data_samples[0]).__name__} differ in kind or shape. '
                "Crop or pad to one size, or choose 'rank'"
            ) from None
        return _pick(data_samples, decision)


def layout_of(images: Tensor, data_samples: list | Tensor) -> str:
    """Shapes and types of a batch without its number of images, the same for equal layouts in every
    process: ``images (3, 4, 4) torch.float32, gt_sem_seg.data (1, 4, 4) torch.int64``."""
    first = data_samples[0]
    parts = [_describe('images', images[0]), *_fields('', first)]
    return ', '.join(parts)


class _NotStackable(Exception):
    """The samples' labels differ in kind or shape."""


def _on_host(tensor: Tensor) -> bool:
    """Whether its values can be read without waiting."""
    return tensor.device.type == 'cpu'


def _pick(data_samples: list, decision: Decision) -> list:
    return [data_samples[i] for i in decision.selection.indices.tolist()]


def _fields(name: str, value: Any) -> list[str]:
    if isinstance(value, BaseDataElement):
        # In the order of their names: MMEngine's own follows the process's hash seed.
        keys = sorted(value.keys())
        return [part for key in keys for part in _fields(f'{name}.{key}', value.get(key))]
    name = name.removeprefix('.') or 'labels'
    return [_describe(name, value) if isinstance(value, Tensor) else f'{name} {type(value)}']


def _describe(name: str, tensor: Tensor) -> str:
    return f'{name} {tuple(tensor.shape)} {tensor.dtype}'


def _gather(values: list, decision: Decision) -> list:
    first = values[0]
    if isinstance(first, Tensor):
        if any(not isinstance(v, Tensor) or v.shape != first.shape for v in values):
            raise _NotStackable
        return list(decision.take(torch.stack(values)))
    if not isinstance(first, BaseDataElement):
        raise _NotStackable
    if any(type(v) is not type(first) or set(v.keys()) != set(first.keys()) for v in values):
        raise _NotStackable
    # In the order of their names, so that each process hands on the same field at the same time.
    fields = {key: _gather([v.get(key) for v in values], decision) for key in sorted(first.keys())}
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
