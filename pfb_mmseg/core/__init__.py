"""The method in plain PyTorch: density, selection, quota. Needs torch alone."""

from .density import bandwidth, log_density
from .estimator import AdaptiveDensityEstimator
from .pruner import BatchPruner
from .quota import KeepQuota
from .representation import pool_features, spatial_mean
from .selection import Selection, select_rare
from .statistics import SelectionStatistics

__all__ = [
    'AdaptiveDensityEstimator',
    'BatchPruner',
    'KeepQuota',
    'Selection',
    'SelectionStatistics',
    'bandwidth',
    'log_density',
    'pool_features',
    'select_rare',
    'spatial_mean',
]
