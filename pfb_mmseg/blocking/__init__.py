"""Where and how a forward pass is cut. Knows torch modules, not OpenMMLab."""

from .point import BlockingPoint
from .scoring import scoring_mode
from .stages import default_stage, stage_names

__all__ = ['BlockingPoint', 'default_stage', 'scoring_mode', 'stage_names']
