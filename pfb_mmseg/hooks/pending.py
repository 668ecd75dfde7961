"""A selection on its way from the device to the host's record."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import Selection
from ..reporting import class_pixels


class PendingStep:
    """What became of a batch; copied without waiting, read a step later.

    Args:
        iteration: of the step.
        data_batch: ``'data_samples'``, N of them, with labels where there are any.
        selection: made from the batch.
        num_classes: of the data set; 0 if it does not tell.
    """

    def __init__(
        self, iteration: int, data_batch: dict, selection: Selection, num_classes: int
    ) -> None:
        samples = data_batch['data_samples']
        self._iteration = iteration
        self._paths = [str(getattr(sample, 'img_path', '<no path>')) for sample in samples]
        self._kept = _start_copy(selection.kept)
        self._log_density = _start_copy(selection.log_density)
        self._pixels = _start_copy(class_pixels(samples, num_classes))
        self._arrived = None
        if selection.indices.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> dict[str, Any]:
        """Arguments of :meth:`SelectionRecord.add`. Waits for the copies."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(
            iteration=self._iteration,
            paths=self._paths,
            kept=self._kept.numpy(),
            log_density=None if self._log_density is None else self._log_density.numpy(),
            pixels=None if self._pixels is None else self._pixels.numpy(),
        )


def _start_copy(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
