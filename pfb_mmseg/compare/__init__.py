"""Setting methods side by side: the rivals of PFB, the rows of a comparison and its runs."""

from ..models.lazy import register_for_later
from .budget_hook import BudgetHook
from .fixed_part import FixedPartSampler
from .image_loss import ImageLossCascadeEncoderDecoder, ImageLossEncoderDecoder, ImageLossMixin
from .infobatch import InfoBatchHook, InfoBatchSampler
from .orderdp import OrderDPSampler
from .rare_class import RareClassSampler
from .score_hook import ScoreSamplerHook
from .score_sampler import ScoreSampler, Taken
from .seta import SeTaSampler

__all__ = [
    'BudgetHook',
    'FixedPartSampler',
    'ImageLossCascadeEncoderDecoder',
    'ImageLossEncoderDecoder',
    'ImageLossMixin',
    'InfoBatchHook',
    'InfoBatchSampler',
    'OrderDPSampler',
    'RareClassSampler',
    'ScoreSampler',
    'ScoreSamplerHook',
    'SeTaSampler',
    'Taken',
]

register_for_later(
    'ImageLossImageClassifier', f'{__name__}.image_loss_classifier', 'mmpretrain', 'classification'
)
