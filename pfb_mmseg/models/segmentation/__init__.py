"""What a config names: segmentors with blocked training steps."""

from ..mixin import PartialForwardBlocking, PFBMixin
from . import task  # noqa: F401  tells the hosts of segmentors
from .encoder_decoder import PFBCascadeEncoderDecoder, PFBEncoderDecoder

__all__ = [
    'PFBCascadeEncoderDecoder',
    'PFBEncoderDecoder',
    'PFBMixin',
    'PartialForwardBlocking',
]
