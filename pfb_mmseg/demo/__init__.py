"""Scenes made by code, and the demo that trains on them."""

from .scenes import LoadDemoLabels, LoadDemoScene, PFBDemoDataset

__all__ = ['LoadDemoLabels', 'LoadDemoScene', 'PFBDemoDataset']
