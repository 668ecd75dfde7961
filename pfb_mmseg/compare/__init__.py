"""Setting methods side by side: the rivals of PFB, the rows of a comparison and its runs."""

from .budget_hook import BudgetHook
from .fixed_part import FixedPartSampler
from .infobatch import InfoBatchSampler
from .orderdp import OrderDPSampler
from .rare_class import RareClassSampler
from .score_hook import ScoreSamplerHook
from .score_sampler import ScoreSampler
from .seta import SeTaSampler

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
