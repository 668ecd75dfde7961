"""Training data: leaving images out before they are loaded, and the check of a data set."""

from .batch_sampler import PFBBatchSampler

__all__ = ['PFBBatchSampler']
