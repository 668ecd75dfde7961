"""Data sets that OpenMMLab does not bring: demo scenes, CamVid, Clothing Co-Parsing, and tar files
of classes; and a sampler that leaves images out before they are loaded."""

from .batch_sampler import PFBBatchSampler
from .camvid import CamVidDataset
from .ccp import CCPCoarseDataset, CCPDataset
from .class_tar import ClassTarDataset
from .demo import LoadDemoLabels, LoadDemoScene, PFBDemoDataset
from .wrong_labels import WrongLabelsMixin

__all__ = [
    'CCPCoarseDataset',
    'CCPDataset',
    'CamVidDataset',
    'ClassTarDataset',
    'LoadDemoLabels',
    'LoadDemoScene',
    'PFBBatchSampler',
    'PFBDemoDataset',
    'WrongLabelsMixin',
]
