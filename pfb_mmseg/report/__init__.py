"""What a run writes down of itself, and the pages that are made of it.

Training imports it, so importing it brings neither plots nor pages.
"""

from .classes import class_counts
from .record import RECORD_NAME, SelectionRecord, image_name
from .scalars import METRICS, read_scalars

__all__ = [
    'METRICS',
    'RECORD_NAME',
    'SelectionRecord',
    'class_counts',
    'image_name',
    'read_scalars',
]
