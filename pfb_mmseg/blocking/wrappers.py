"""What may be wrapped around a model, as far as blocking has to know."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def is_sharded(wrapped: nn.Module, model: nn.Module) -> bool:
    """Whether a part of the model may only be run within a forward pass of the whole.

    FSDP and DeepSpeed put the parameters together on the way through the wrapper around the model;
    ``fully_shard`` does so without one. Wrappers that are not known count as such.

    Args:
        wrapped: the model as it is called in training.
        model: the same without the wrapper around it, if there is one.
    """
    if wrapped is not model and not isinstance(wrapped, (DataParallel, DistributedDataParallel)):
        return True
    # DTensors, whose class has moved from release to release.
    return any(hasattr(parameter, 'device_mesh') for parameter in model.parameters())
