"""The model that a runner trains, without its wrapper, and the PFB in it."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from torch import nn

from ..models import PartialForwardBlocking


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without what MMEngine wraps around it for several processes, such as DDP."""
    return model.module if is_model_wrapper(model) else model


def find_filter(model: nn.Module) -> PartialForwardBlocking:
    """The PFB of a model, wrapped or not.

    Raises:
        ValueError: there is none.
    """
    model = unwrapped(model)
    for module in model.children():
        if isinstance(module, PartialForwardBlocking):
            return module
    raise ValueError(
        f'PFBHook needs a model with PFBMixin, got {type(model).__name__}; use '
        "type='PFBEncoderDecoder' with pfb=dict(prune_ratio=...), or remove the hook"
    )
