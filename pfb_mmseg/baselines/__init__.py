"""The methods that PFB is compared with and that train otherwise than by choosing in a batch."""

from .infobatch_hook import InfoBatchHook
from .infobatch_sampler import InfoBatchSampler
from .infobatch_segmentor import (
    InfoBatchCascadeEncoderDecoder,
    InfoBatchEncoderDecoder,
    InfoBatchMixin,
)

__all__ = [
    'InfoBatchCascadeEncoderDecoder',
    'InfoBatchEncoderDecoder',
    'InfoBatchHook',
    'InfoBatchMixin',
    'InfoBatchSampler',
]
