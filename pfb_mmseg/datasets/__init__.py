"""Data sets that MMSegmentation does not bring: the embedded demo scenes, and CamVid."""

from .camvid import CamVidDataset
from .demo import LoadDemoLabels, LoadDemoScene, PFBDemoDataset

__all__ = ['CamVidDataset', 'LoadDemoLabels', 'LoadDemoScene', 'PFBDemoDataset']
