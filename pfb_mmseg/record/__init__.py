"""What a run writes down of itself: images kept and dropped, classes, versions.

Training imports it, so it knows of nothing that only a reader needs: no plots, no pages.
"""

from .classes import class_counts, class_pixels
from .counts import RECORD_NAME, SelectionRecord, image_name

__all__ = ['RECORD_NAME', 'SelectionRecord', 'class_counts', 'class_pixels', 'image_name']
