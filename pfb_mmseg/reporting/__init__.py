"""What was pruned and what it saved. Reads and writes files of a run; knows no model."""

from .record import SelectionRecord
from .scalars import read_scalars

__all__ = ['SelectionRecord', 'read_scalars']
