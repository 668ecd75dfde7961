"""What a run writes down of itself: images kept and dropped, classes, versions.

Training imports it, so it knows of nothing that only a reader needs: no plots, no pages.
"""

from .counts import RECORD_NAME, SelectionRecord
from .pixels import class_pixels

__all__ = ['RECORD_NAME', 'SelectionRecord', 'class_pixels']
