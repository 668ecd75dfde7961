"""Choosing what is loaded by what was last seen of it: sampler, hook, losses of single images."""

from ..hosts.lazy import register_for_later
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

register_for_later(
    'ImageLossImageClassifier', f'{__name__}.classifier', 'mmpretrain', 'classification'
)
