"""The method in plain PyTorch: who stays, and how that is decided. Needs torch alone."""

from . import criteria  # noqa: F401  registers the criteria
from .candidates import Candidates, FeatureCandidates
from .criterion import CRITERIA, Criterion, FunctionCriterion
from .density import bandwidth
from .estimator import AdaptiveDensityEstimator
from .pruner import BatchPruner, Decision
from .quota import KeepQuota
from .representation import pool_features, spatial_mean
from .selection import Selection

__all__ = [
    'CRITERIA',
    'AdaptiveDensityEstimator',
    'BatchPruner',
    'Candidates',
    'Criterion',
    'Decision',
    'FeatureCandidates',
    'FunctionCriterion',
    'KeepQuota',
    'Selection',
    'bandwidth',
    'pool_features',
    'spatial_mean',
]
