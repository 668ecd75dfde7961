"""Data sets, backbones and hooks of the experiments; a config imports them by ``benchmarks.lab``.

What they register has a name that begins with ``Lab``, so that a user's own ``CamVidDataset`` has
its name for itself.
"""

from .camvid import LabCamVidDataset
from .ccp import LabCCPCoarseDataset, LabCCPDataset
from .channels_last import LabChannelsLastHook
from .class_tar import LabClassTarDataset
from .efficientnet_lite import LabEfficientNetLite
from .noisy_demo import LabDemoDataset, LabLoadDemoLabels
from .wrong_labels import WrongLabelsMixin

__all__ = [
    'LabCCPCoarseDataset',
    'LabCCPDataset',
    'LabCamVidDataset',
    'LabChannelsLastHook',
    'LabClassTarDataset',
    'LabDemoDataset',
    'LabEfficientNetLite',
    'LabLoadDemoLabels',
    'WrongLabelsMixin',
]
