"""Registering a model whose package is imported only when a config asks for the model."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmengine.registry import MODELS
from torch import nn


def register_for_later(name: str, module: str, package: str, extra: str) -> None:
    """Let ``type=NAME`` be found in MMEngine's registry, from any scope, before its class exists.

    Args:
        name: of the class.
        module: dotted path of the module that defines it, imported when a model is built.
        package: that this module needs.
        extra: of pfb_mmseg, which brings the package.
    """

    def build(**config: Any) -> nn.Module:
        if find_spec(package) is None:
            raise ImportError(
                f'model.type={name!r} needs {package}, which is not installed: '
                f'pip install "pfb_mmseg[{extra}]" (from a clone of the repository: '
                f'pip install -e ".[{extra}]")'
            )
        return awaited_class(build)(**config)

    # What it stands for, told as a class tells where it is from.
    build.__module__, build.__name__ = module, name
    MODELS.register_module(name=name, module=build)


def awaited_class(registered: Any) -> Any:
    """The class that was registered for later; whatever else is registered is itself.

    Raises:
        ImportError: the class's package is not installed.
    """
    if isinstance(registered, type):
        return registered
    return getattr(import_module(registered.__module__), registered.__name__, registered)
