"""The model that a runner trains, without its wrapper, and the PFB in it."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from torch import nn

from ..models import PartialForwardBlocking


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without what MMEngine wraps around it for several processes, such as DDP."""
    return model.module if is_model_wrapper(model) else model


def find_filter(model: nn.Module) -> PartialForwardBlocking:
    """The PFB of a model or of a model inside it, such as the student of a distillation.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [module for module in model.modules() if isinstance(module, PartialForwardBlocking)]
    if len(found) > 1:
        raise ValueError(
            f'{type(unwrapped(model)).__name__} has {len(found)} models with PFBMixin inside; '
            "PFBHook runs the schedule of one. Leave 'pfb' out of the others' types and options"
        )
    if not found:
        raise ValueError(
            f'PFBHook needs a model with PFBMixin, got {type(unwrapped(model)).__name__}; use '
            "type='PFBEncoderDecoder' with pfb=dict(prune_ratio=...), or remove the hook"
        )
    return found[0]
