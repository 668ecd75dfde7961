"""What PFB is compared with and trains otherwise than by choosing within a batch."""

from .infobatch_hook import InfoBatchHook
from .infobatch_sampler import InfoBatchSampler
from .infobatch_segmentor import (
    InfoBatchCascadeEncoderDecoder,
    InfoBatchEncoderDecoder,
    InfoBatchMixin,
)
from .resize import ProgressiveResizeHook, ResizingSegDataPreProcessor

__all__ = [
    'InfoBatchCascadeEncoderDecoder',
    'InfoBatchEncoderDecoder',
    'InfoBatchHook',
    'InfoBatchMixin',
    'InfoBatchSampler',
    'ProgressiveResizeHook',
    'ResizingSegDataPreProcessor',
]
