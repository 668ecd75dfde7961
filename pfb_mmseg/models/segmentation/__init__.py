"""MMSegmentation's models: early exits, losses of single images, and what a config names."""

from . import task  # noqa: F401  registers the kind
from .encoder_decoder import PFBCascadeEncoderDecoder, PFBEncoderDecoder

__all__ = ['PFBCascadeEncoderDecoder', 'PFBEncoderDecoder']
