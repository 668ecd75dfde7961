"""Where and how a forward pass is cut. Knows torch modules, not OpenMMLab."""

from .cost import StepCost, count_flops, step_cost
from .norms import least_trainable
from .point import BlockingPoint, feature_tensors, find_module, returned_by, shrink
from .scoring import score_again_alike, scoring_mode
from .single_pass import RunsTwice, SinglePass
from .stages import FAMILIES, Family, default_stage, early_stage, output_stages, stage_names
from .wrappers import is_sharded

__all__ = [
    'FAMILIES',
    'BlockingPoint',
    'Family',
    'RunsTwice',
    'SinglePass',
    'StepCost',
    'count_flops',
    'default_stage',
    'early_stage',
    'feature_tensors',
    'find_module',
    'is_sharded',
    'least_trainable',
    'output_stages',
    'returned_by',
    'score_again_alike',
    'scoring_mode',
    'shrink',
    'stage_names',
    'step_cost',
]
