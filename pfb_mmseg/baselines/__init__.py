"""What PFB is compared with: InfoBatch, DivBS, loss top-k, full data, short, small, resize."""

from .infobatch_hook import InfoBatchHook
from .infobatch_sampler import InfoBatchSampler
from .infobatch_segmentor import (
    InfoBatchCascadeEncoderDecoder,
    InfoBatchEncoderDecoder,
    InfoBatchMixin,
)
from .resize import ProgressiveResizeHook, ResizingSegDataPreProcessor
from .selection import (
    LabelledSelectionCascadeEncoderDecoder,
    LabelledSelectionEncoderDecoder,
    LabelledSelectionMixin,
)

__all__ = [
    'InfoBatchCascadeEncoderDecoder',
    'InfoBatchEncoderDecoder',
    'InfoBatchHook',
    'InfoBatchMixin',
    'InfoBatchSampler',
    'LabelledSelectionCascadeEncoderDecoder',
    'LabelledSelectionEncoderDecoder',
    'LabelledSelectionMixin',
    'ProgressiveResizeHook',
    'ResizingSegDataPreProcessor',
]
