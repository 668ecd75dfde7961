"""The state that an encoder is in while images are only being scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def scoring_mode(encoder: nn.Module, batch_statistics: bool = True) -> Iterator[None]:
    """No gradient, no dropout or stochastic depth, and nothing that training relies on changes.

    Args:
        encoder: put back as it was on exit, also after an exception.
        batch_statistics: BatchNorm layers that are being trained normalise with the statistics of
            the batch, as in the training pass, without touching the running ones; False uses the
            running ones. Frozen BatchNorm layers use their running statistics either way.
    """
    training = [module for module in encoder.modules() if module.training]
    batch_norms = [
        module
        for module in training
        if batch_statistics and isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    # Autocast would remember the half-precision weights it makes here, without gradient, and hand
    # them to the training pass of the same step.
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    # The flags themselves: .train() may be overridden to freeze or unfreeze stages.
    for module in training:
        module.training = False
    for module in batch_norms:
        module.training = True
        module.track_running_stats = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)
        for module in training:
            module.training = True
        for module in batch_norms:
            module.track_running_stats = True
