"""From a feature map to the short vector that stands for an image (Sec. 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    features = features.detach()
    if features.ndim < 2:
        raise ValueError(
            f'expected features of shape (N, C, ...), got {tuple(features.shape)}: the blocking '
            'point must be a module that returns a feature map'
        )
    spatial = [d for d in range(1, features.ndim) if d != channel_dim % features.ndim]
    return features.mean(dim=spatial, dtype=torch.float32) if spatial else features.float()


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
    vector = spatial_mean(features)
    num_channels = vector.shape[1]
    if dim > num_channels:
        raise ValueError(
            f'dim={dim} is more than the {num_channels} channels at the blocking point; '
            f'set estimator=dict(dim={num_channels}) or less'
        )
    return F.adaptive_avg_pool1d(vector[:, None], dim)[:, 0]
