"""Classifiers of MMPretrain with blocked training steps, where MMPretrain is installed.

Importing this room imports nothing of MMPretrain: a config's ``type='PFBImageClassifier'`` is found
in MMEngine's registry, from any scope, and the class is made when the model is built.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS

__all__ = ['PFBImageClassifier']


@MODELS.register_module(name='PFBImageClassifier')
def _build(**config: Any) -> Any:
    from .image_classifier import PFBImageClassifier

    return PFBImageClassifier(**config)


def __getattr__(name: str) -> type:
    if name in __all__:
        from . import image_classifier

        return getattr(image_classifier, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
