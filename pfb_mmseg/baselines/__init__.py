"""What PFB is compared with and trains otherwise than by choosing within a batch."""

from ..hosts.lazy import register_for_later
from ..sampling import ImageLossMixin as InfoBatchMixin  # its name in version 0.1
from .fixed_part import FixedPartSampler
from .infobatch import (
    InfoBatchCascadeEncoderDecoder,
    InfoBatchEncoderDecoder,
    InfoBatchHook,
    InfoBatchSampler,
)
from .orderdp import OrderDPSampler
from .rare_class import RareClassSampler
from .resize import ProgressiveResizeHook, ResizingSegDataPreProcessor
from .seta import SeTaSampler

__all__ = [
    'FixedPartSampler',
    'InfoBatchCascadeEncoderDecoder',
    'InfoBatchEncoderDecoder',
    'InfoBatchHook',
    'InfoBatchMixin',
    'InfoBatchSampler',
    'OrderDPSampler',
    'ProgressiveResizeHook',
    'RareClassSampler',
    'ResizingSegDataPreProcessor',
    'SeTaSampler',
]

register_for_later(
    'InfoBatchImageClassifier', f'{__name__}.infobatch_classifier', 'mmpretrain', 'classification'
)
