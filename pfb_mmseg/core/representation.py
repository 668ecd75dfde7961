"""From a feature map to the short vector that stands for an image (Sec. 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_dim


@torch.no_grad()
def spatial_mean(features: Tensor, channel_dim: int = 1) -> Tensor:
    """Mean over every dimension but the batch and the channels.

    Args:
        features: (N, C, H, W) or, with ``channel_dim=-1``, (N, H, W, C) or (N, L, C), any float
            type; (N, C) stays as it is.
        channel_dim: which dimension holds the channels.

    Returns:
        (N, C) float32, without gradient.

    Raises:
        ValueError: ``features`` has no channels.
    """
    _check_features(features)
    spatial = [d for d in range(1, features.ndim) if d != channel_dim % features.ndim]
    if spatial:
        return features.mean(dim=spatial, dtype=torch.float32)
    return features.detach().float()


@torch.no_grad()
def pool_features(features: Tensor, dim: int) -> Tensor:
    """Spatial mean, then average pooling over neighbouring channels down to ``dim``.

    Args:
        features: (N, C, H, W) or any other (N, C, ...).
        dim: D, in [1, C].

    Returns:
        (N, D) float32, without gradient.

    Raises:
        ValueError: there are fewer than ``dim`` channels.
    """
    _check_features(features)
    num_channels = features.shape[1]
    check_dim(dim, num_channels)
    if dim == num_channels:
        return spatial_mean(features)
    if num_channels % dim == 0:  # each channel goes into one mean: both are one
        parts = features.unflatten(1, (dim, num_channels // dim))
        return parts.mean(dim=list(range(2, parts.ndim)), dtype=torch.float32)
    return F.adaptive_avg_pool1d(spatial_mean(features)[:, None], dim)[:, 0]


def _check_features(features: Tensor) -> None:
    if features.ndim < 2:
        raise ValueError(
            f'expected features of shape (N, C, ...), got {tuple(features.shape)}: the blocking '
            'point must be a module that returns a feature map'
        )
