"""Classifiers of MMPretrain with blocked training steps, where MMPretrain is installed.

Importing this room imports nothing of MMPretrain: that happens when a model is built, or the class
is imported from here.
"""

from ..lazy import register_for_later
from . import task  # noqa: F401  tells the hosts of classifiers

__all__ = ['PFBImageClassifier']

register_for_later(
    'PFBImageClassifier', f'{__name__}.image_classifier', 'mmpretrain', 'classification'
)


def __getattr__(name: str) -> type:
    if name in __all__:
        from .image_classifier import PFBImageClassifier

        return PFBImageClassifier
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
