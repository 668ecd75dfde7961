"""Where and how a forward pass is cut. Knows torch modules, not OpenMMLab."""

from .cost import share_behind
from .norms import least_trainable
from .point import BlockingPoint, shrink
from .scoring import scoring_mode
from .stages import FAMILIES, Family, default_stage, stage_names
from .wrappers import is_sharded

__all__ = [
    'FAMILIES',
    'BlockingPoint',
    'Family',
    'default_stage',
    'is_sharded',
    'least_trainable',
    'scoring_mode',
    'share_behind',
    'shrink',
    'stage_names',
]
