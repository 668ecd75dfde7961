"""Choosing what is loaded by what was last seen of it: sampler, hook, losses of single images."""

from .hook import ScoreSamplerHook
from .sampler import ScoreSampler, Taken
from .segmentor import (
    ImageLossCascadeEncoderDecoder,
    ImageLossEncoderDecoder,
    ImageLossMixin,
)

__all__ = [
    'ImageLossCascadeEncoderDecoder',
    'ImageLossEncoderDecoder',
    'ImageLossMixin',
    'ScoreSampler',
    'ScoreSamplerHook',
    'Taken',
]
