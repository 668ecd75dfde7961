"""The pages that show what a run skipped and what a model makes of a data set."""

from .scalars import read_scalars

__all__ = ['read_scalars']
