"""Partial Forward Blocking for MMSegmentation, and for any PyTorch loop.

Importing this package imports nothing else; ``pfb_mmseg.core``, ``.criteria`` and ``.blocking``
need torch alone. In a process that uses OpenMMLab the models, hooks and data sets are registered,
whichever is imported first: that is all that ``custom_imports = dict(imports=['pfb_mmseg'])`` in a
config asks for.
"""

from importlib import import_module
from typing import Any

from .compat import after_import, check_openmmlab, uses_openmmlab
from .version import __version__

__all__ = [
    'PFBCascadeEncoderDecoder',
    'PFBEncoderDecoder',
    'PFBHook',
    'PFBMixin',
    '__version__',
    'apply_pfb',
]


def register() -> str | None:
    """Import what a config can name, which registers it.

    Returns:
        None; or what is missing, see :func:`check_openmmlab`.

    Raises:
        ImportError: OpenMMLab's packages are installed, but cannot work.
    """
    missing = check_openmmlab()
    if missing is None:
        for package in ('backbones', 'baselines', 'classifiers', 'datasets', 'hooks', 'segmentors'):
            import_module(f'.{package}', __name__)
    return missing


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if missing := register():
        raise ImportError(missing)
    package = {'PFBHook': '.hooks', 'apply_pfb': '.hosts.apply'}.get(name, '.segmentors')
    return getattr(import_module(package, __name__), name)


after_import(uses_openmmlab, register)
