"""Registering a model whose package is imported only when a config asks for the model."""

from __future__ import annotations

from importlib import import_module

from mmengine.registry import MODELS
from torch import nn


def register_for_later(name: str, module: str) -> None:
    """Let ``type=NAME`` be found in MMEngine's registry, from any scope, before its class exists.

    Args:
        name: of the class.
        module: dotted path of the module that defines it, imported when a model is built.
    """

    def build(**config) -> nn.Module:
        return getattr(import_module(module), name)(**config)

    build.__name__ = name
    MODELS.register_module(name=name, module=build)
