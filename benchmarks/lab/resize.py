"""Progressive resizing: small images at the start of a run, whatever it trains with."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement, PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from pfb_mmseg.core.checks import check_number
from pfb_mmseg.hooks.model import unwrapped


@MODELS.register_module()
class ResizingSegDataPreProcessor(SegDataPreProcessor):
    """SegDataPreProcessor that can shrink a padded training batch, images and labels alike.

    Images are averaged over the pixels that become one, of the labels (classes, edges, depth) the
    nearest pixel's is taken. Options are SegDataPreProcessor's; ProgressiveResizeHook says when.

    Attributes:
        train_scale (float): of the sides of training images, in (0, 1]; 1 at first.
    """

    train_scale = 1.0

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        data = super().forward(data, training)
        if training and self.train_scale != 1:
            height, width = data['inputs'].shape[-2:]
            size = tuple(max(1, round(side * self.train_scale)) for side in (height, width))
            data['inputs'] = F.interpolate(data['inputs'], size, mode='area')
            for sample in data['data_samples']:
                _shrink(sample, size)
        return data


@HOOKS.register_module()
class ProgressiveResizeHook(Hook):
    """Trains on small images in the first part of a run, and on whole ones from there on.

    The scale is a function of the iteration alone, so a resumed run goes on as it would have.
    PFBHook's time saved is measured against full steps of either size, and means little beside this
    hook; compare whole runs instead.

    Args:
        scale: of the sides of the images in the first part, in (0, 1).
        until: end of that part, as a fraction of the run, in (0, 1].

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model's data preprocessor is not a ResizingSegDataPreProcessor.
    """

    def __init__(self, scale: float = 0.5, until: float = 1 / 3) -> None:
        check_number('scale', scale, 0, 1, open_low=True, open_high=True)
        check_number('until', until, 0, 1, open_low=True)
        self.scale = scale
        self.until = until

    def before_train(self, runner) -> None:
        model = unwrapped(runner.model)
        self._preprocessor = model.data_preprocessor
        if not isinstance(self._preprocessor, ResizingSegDataPreProcessor):
            raise ValueError(
                'ProgressiveResizeHook needs model.data_preprocessor.type='
                f"'ResizingSegDataPreProcessor', got {type(self._preprocessor).__name__}"
            )
        self._end = round(self.until * runner.max_iters)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._preprocessor.train_scale = self.scale if runner.iter < self._end else 1.0

    def after_train(self, runner) -> None:
        self._preprocessor.train_scale = 1.0


def _shrink(sample: BaseDataElement, size: tuple[int, int]) -> None:
    """Resizes all label maps of a sample, in place, to (height, width)."""
    for name, field in list(sample.items()):
        if isinstance(field, PixelData):
            sample.set_data({name: PixelData(data=_nearest(field.data, size))})
    sample.set_metainfo({'img_shape': size, 'pad_shape': size, 'padding_size': [0, 0, 0, 0]})


def _nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) of any type -> (..., height, width), each the pixel in the middle of its area."""
    rows, columns = (
        ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long()
        for old, new in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[..., rows[:, None], columns]
