"""The pages that show what a run skipped and what a model makes of a data set."""

from .scalars import METRICS, read_scalars

__all__ = ['METRICS', 'read_scalars']
