"""From a feature map to the short vector that stands for an image (Sec. 3.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_dim


def spatial_mean(
    features: Tensor,
    channel_dim: int = 1,
    valid: Tensor | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Mean over every dimension but the batch and the channels.

    Args:
        features: (N, C, H, W) or, with ``channel_dim=-1``, (N, H, W, C) or (N, L, C), any float
            type; (N, C) stays as it is.
        channel_dim: which dimension holds the channels.
        valid: (N, 2) floats in (0, 1], which share of the height and of the width is image, from
            the top left; the rest is padding. The mean is over the cells whose centre lies inside
            the image, and over one row or column where none does. None: there is no padding. On the
            CPU, ones are seen to be none and cost nothing more either.
        grid: (H, W) of the L = H * W tokens, which ``valid`` needs for (N, L, C); see
            :func:`token_grid`.

    Returns:
        (N, C) float32.

    Raises:
        ValueError: ``features`` has no channels; or ``valid`` is given and there is no height and
            width.
    """
    _check_features(features)
    spatial = [d for d in range(1, features.ndim) if d != channel_dim % features.ndim]
    if not spatial:
        return features.float()
    if valid is None or (valid.device.type == 'cpu' and bool((valid == 1).all())):
        return features.mean(dim=spatial, dtype=torch.float32)
    if len(spatial) == 1 and grid is not None and math.prod(grid) == features.shape[spatial[0]]:
        channels_last = features.movedim(channel_dim, -1)
        return spatial_mean(channels_last.unflatten(1, grid), -1, valid)
    if len(spatial) != 2:
        raise ValueError(
            f'features of shape {tuple(features.shape)} have no height and width, so it is not '
            'known where the images are padded; expected a feature map, or tokens and their grid, '
            f'got grid={grid}'
        )
    valid = valid.to(features.device, non_blocking=True)
    rows, columns = (_inside(valid[:, i], features.shape[dim]) for i, dim in enumerate(spatial))
    padding = ~(rows[:, :, None] & columns[:, None, :]).unsqueeze(channel_dim)
    total = features.masked_fill(padding, 0).sum(dim=spatial, dtype=torch.float32)
    return total / (rows.sum(dim=1) * columns.sum(dim=1))[:, None]


def _inside(share: Tensor, num: int) -> Tensor:
    """(N, num) bool: which of ``num`` cells in a row have their centre in this share of it."""
    centres = torch.arange(num, device=share.device) + 0.5
    # The first cell always counts: an image may be narrower than half a cell.
    return centres < (share[:, None] * num).clamp(min=1)


def token_grid(num_tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """The (H, W) of the L tokens of an image, where patches of one size cover it; None where no
    square patch gives so many, as where there is a class token. The image's height and width are in
    pixels, as the network takes it, padding included."""
    for patch in range(1, max(height, width) + 1):
        grid = (math.ceil(height / patch), math.ceil(width / patch))
        if math.prod(grid) <= num_tokens:
            return grid if math.prod(grid) == num_tokens else None
    return None


@torch.no_grad()
def pool_features(features: Tensor, dim: int) -> Tensor:
    """Spatial mean of (N, C, ...), then average pooling over neighbouring channels down to D =
    ``dim``, in [1, C]: (N, D) float32, without gradient.

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
