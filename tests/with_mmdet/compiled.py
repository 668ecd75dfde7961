"""A stand-in for mmcv's compiled operations, for tests of models that import them and run none."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class _Operations(ModuleType):
    """Has a function of every name, which says that it is not there."""

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)

        def not_compiled(*args, **kwargs):
            raise RuntimeError(f'the operation {name} of mmcv is not compiled')

        return not_compiled


def stand_in():
    """Put it where MMDetection and MMSegmentation look, who must not be imported yet."""
    if find_spec('mmcv._ext') is None:
        module = _Operations('mmcv._ext')
        module.__spec__ = ModuleSpec('mmcv._ext', None)
        sys.modules['mmcv._ext'] = module
