"""Data sets, backbones and hooks of the experiments; a config imports them by ``benchmarks.lab``."""

from .agreement_hook import AgreementHook
from .camvid import CamVidDataset
from .ccp import CCPCoarseDataset, CCPDataset
from .channels_last_hook import ChannelsLastHook
from .class_tar import ClassTarDataset
from .efficientnet_lite import EfficientNetLite
from .resize import ProgressiveResizeHook, ResizingSegDataPreProcessor
from .wrong_labels import WrongLabelsMixin

__all__ = [
    'AgreementHook',
    'CCPCoarseDataset',
    'CCPDataset',
    'CamVidDataset',
    'ChannelsLastHook',
    'ClassTarDataset',
    'EfficientNetLite',
    'ProgressiveResizeHook',
    'ResizingSegDataPreProcessor',
    'WrongLabelsMixin',
]
