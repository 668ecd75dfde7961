"""What a config names: segmentors with blocked training steps."""

from .encoder_decoder import PFBCascadeEncoderDecoder, PFBEncoderDecoder
from .mixin import PartialForwardBlocking, PFBMixin

__all__ = [
    'PFBCascadeEncoderDecoder',
    'PFBEncoderDecoder',
    'PFBMixin',
    'PartialForwardBlocking',
]
