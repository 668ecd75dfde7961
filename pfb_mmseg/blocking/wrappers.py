"""What may be wrapped around a model, as far as blocking has to know."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def is_sharded(wrapped: nn.Module, model: nn.Module) -> bool:
    """Whether a part of the model may only be run within a forward pass of the whole, with whatever
    is wrapped around it in training.

    FSDP and DeepSpeed put the parameters together on the way through the wrapper; ``fully_shard``
    does so without one. Wrappers that are not known count as such.
    """
    if wrapped is not model and not isinstance(wrapped, (DataParallel, DistributedDataParallel)):
        return True
    # DTensors, whose class has moved from release to release.
    return any(hasattr(parameter, 'device_mesh') for parameter in model.parameters())
