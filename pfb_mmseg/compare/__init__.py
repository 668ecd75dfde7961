"""Setting methods side by side: the rivals of PFB, the rows of a comparison and its runs."""

from .budget_hook import BudgetHook
from .rare_class import RareClassSampler
from .rivals import FixedPartSampler, InfoBatchSampler, OrderDPSampler, SeTaSampler
from .score_hook import ScoreSamplerHook
from .score_sampler import ScoreSampler

__all__ = [
    'BudgetHook',
    'FixedPartSampler',
    'InfoBatchSampler',
    'OrderDPSampler',
    'RareClassSampler',
    'ScoreSampler',
    'ScoreSamplerHook',
    'SeTaSampler',
]
