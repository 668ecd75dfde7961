"""The parts of torch without a public name that this package relies on, all in one place."""

from __future__ import annotations

from collections.abc import Callable

import torch


def is_checkpointed() -> bool:
    """Whether the forward pass under way, which is to have a gradient, will be run once more."""
    if not torch.is_grad_enabled():  # the reentrant variant
        return True
    # The other one replaces what is saved for the backward pass, as few other things do.
    look = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)
    return look is None or look(True) is not None


def in_backward() -> bool:
    """Whether a backward pass is under way."""
    return torch._C._current_graph_task_id() != -1


def at_end_of_backward(call: Callable[[], None]) -> None:
    """Have something called when the backward pass under way is over."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
