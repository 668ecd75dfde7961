"""The state that an encoder is in while images are only being scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .norms import has_running_statistics
from .torch_internals import at_end_of_backward


@contextmanager
def scoring_mode(
    encoder: nn.Module, batch_statistics: bool = True, gradient: bool = False
) -> Iterator[None]:
    """No dropout or stochastic depth, and nothing that training relies on changes.

    Args:
        encoder: put back as it was on exit, also after an exception.
        batch_statistics: layers with running statistics (BatchNorm, and whatever else has a
            ``running_mean``) that are being trained normalise with the statistics of the batch, as
            in the training pass, without touching the running ones; False uses the running ones.
            Frozen ones use their running statistics either way.
        gradient: whether the pass shall leave a graph to go back through.
    """
    training = [module for module in encoder.modules() if module.training]
    norms = [module for module in training if batch_statistics and has_running_statistics(module)]
    batch_norms = [n for n in norms if isinstance(n, _BatchNorm) and n.track_running_stats]
    # Others may update their statistics whatever their flags say: they are lent copies of them.
    lenders = [(n, dict(n._buffers)) for n in norms if not isinstance(n, _BatchNorm)]
    # Autocast would remember the half-precision weights it makes here, without gradient, and hand
    # them to the training pass of the same step.
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(caching and gradient)
    # The flags themselves: .train() may be overridden to freeze or unfreeze stages.
    for module in training:
        module.training = False
    for module in batch_norms:
        module.training = True
        module.track_running_stats = False
    for module, buffers in lenders:
        module.training = True
        module._buffers.update({k: b if b is None else b.clone() for k, b in buffers.items()})
    try:
        with nullcontext() if gradient else torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)
        for module in training:
            module.training = True
        for module in batch_norms:
            module.track_running_stats = True
        for module, buffers in lenders:
            module._buffers.update(buffers)


def score_again_alike(encoder: nn.Module, outputs: list[Tensor]) -> None:
    """Let what activation checkpointing runs once more, in the backward pass of a scoring pass with
    these outputs, run in the :func:`scoring_mode`.

    That backward pass is the last part of one: autograd begins with what was computed last, and the
    images that stay are trained on after they were scored.
    """
    mode = ExitStack()
    entered = False

    def enter(gradient: Tensor) -> None:
        nonlocal entered
        if not entered:
            entered = True
            mode.enter_context(scoring_mode(encoder, gradient=True))
            at_end_of_backward(mode.close)

    for output in outputs:
        if output.requires_grad:
            output.register_hook(enter)
