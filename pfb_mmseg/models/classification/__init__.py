"""Classifiers of MMPretrain with blocked training steps, where MMPretrain is installed.

Importing this room imports nothing of MMPretrain: that happens when a model is built, or the class
is imported from here.
"""

from importlib.util import find_spec
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from . import task  # noqa: F401  tells the hosts of classifiers

__all__ = ['PFBImageClassifier']


def __getattr__(name: str) -> type:
    if name in __all__:
        from .image_classifier import PFBImageClassifier

        return PFBImageClassifier
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


@MODELS.register_module(name='PFBImageClassifier')
def _build_classifier(**config: Any) -> nn.Module:
    """Stands for the class in MMEngine's registry, where any scope finds it."""
    if find_spec('mmpretrain') is None:
        raise ImportError(
            "model.type='PFBImageClassifier' needs mmpretrain, which is not installed: "
            'pip install "pfb_mmseg[classification]" (from a clone of the repository: '
            'pip install -e ".[classification]")'
        )
    return __getattr__('PFBImageClassifier')(**config)
