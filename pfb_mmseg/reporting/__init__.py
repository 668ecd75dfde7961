"""What was pruned and what it saved: reads and writes the files of a run."""

from .pixels import class_pixels
from .record import RECORD_NAME, SelectionRecord
from .scalars import read_scalars

__all__ = ['RECORD_NAME', 'SelectionRecord', 'class_pixels', 'read_scalars']
