"""Partial Forward Blocking for MMSegmentation.

Importing this package registers its segmentors, backbone, hooks and data sets, which is all that
``custom_imports = dict(imports=['pfb_mmseg'])`` in a config asks for. Without MMSegmentation it
warns, and ``pfb_mmseg.core`` and ``pfb_mmseg.blocking`` can be used still.
"""

from typing import NoReturn

from . import criteria  # noqa: F401  registers them
from .compat import check_openmmlab
from .version import __version__

__all__ = [
    'PFBCascadeEncoderDecoder',
    'PFBEncoderDecoder',
    'PFBHook',
    'PFBMixin',
    '__version__',
    'apply_pfb',
]

_missing = check_openmmlab()

if _missing is None:
    from . import backbones, baselines, classifiers, datasets  # noqa: F401  registers them
    from .hooks import PFBHook
    from .hosts.apply import apply_pfb
    from .segmentors import PFBCascadeEncoderDecoder, PFBEncoderDecoder, PFBMixin


def __getattr__(name: str) -> NoReturn:
    if _missing and name in __all__:
        raise ImportError(_missing)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
