"""Partial Forward Blocking for MMSegmentation, and for any PyTorch loop.

Importing this package registers its models, hooks and samplers where MMSegmentation is installed:
``custom_imports = dict(imports=['pfb_mmseg'])`` in a config asks for just that. Where it is not,
``pfb_mmseg.core`` and ``pfb_mmseg.blocking`` need torch alone.
"""

from typing import Any

from .compat import check_openmmlab
from .quiet import known_lines_held_back
from .version import __version__

__all__ = [
    'PFBCascadeEncoderDecoder',
    'PFBEncoderDecoder',
    'PFBHook',
    'PFBMixin',
    '__version__',
    'apply_pfb',
]

with known_lines_held_back():
    _MISSING = check_openmmlab()
    if _MISSING is None:
        from . import compare, data, demo  # noqa: F401  registers what they hold
        from .convert.apply import apply_pfb
        from .hooks import PFBHook
        from .models.mixin import PFBMixin
        from .models.segmentation import PFBCascadeEncoderDecoder, PFBEncoderDecoder


def __getattr__(name: str) -> Any:
    if name in __all__:
        raise ImportError(_MISSING)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
