"""MMSegmentation's segmentors with blocked training steps, and what their heads tell."""

from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS

from ..mixin import PFBMixin
from . import task  # noqa: F401  tells the kind

__all__ = ['PFBCascadeEncoderDecoder', 'PFBEncoderDecoder']


@MODELS.register_module()
class PFBEncoderDecoder(PFBMixin, EncoderDecoder):
    """EncoderDecoder that trains on the rare images of each batch. Takes ``pfb=dict(...)``."""


@MODELS.register_module()
class PFBCascadeEncoderDecoder(PFBMixin, CascadeEncoderDecoder):
    """CascadeEncoderDecoder, likewise. Takes ``pfb=dict(...)``."""
