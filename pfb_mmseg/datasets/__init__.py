"""Data sets that MMSegmentation does not bring: demo scenes, CamVid, and Clothing Co-Parsing."""

from .camvid import CamVidDataset
from .ccp import CCPCoarseDataset, CCPDataset
from .demo import LoadDemoLabels, LoadDemoScene, PFBDemoDataset
from .wrong_labels import WrongLabelsMixin

__all__ = [
    'CCPCoarseDataset',
    'CCPDataset',
    'CamVidDataset',
    'LoadDemoLabels',
    'LoadDemoScene',
    'PFBDemoDataset',
    'WrongLabelsMixin',
]
