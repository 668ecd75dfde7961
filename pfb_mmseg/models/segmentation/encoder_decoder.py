"""The segmentors of MMSegmentation, with blocked training steps."""

from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS

from ..mixin import PFBMixin


@MODELS.register_module()
class PFBEncoderDecoder(PFBMixin, EncoderDecoder):
    """EncoderDecoder that trains on the rare images of each batch. Takes ``pfb=dict(...)``."""


@MODELS.register_module()
class PFBCascadeEncoderDecoder(PFBMixin, CascadeEncoderDecoder):
    """CascadeEncoderDecoder, likewise. Takes ``pfb=dict(...)``."""
