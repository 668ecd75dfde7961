"""DivBS: a diverse subset of a batch, by last-layer gradients (Hong et al., ICML 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

# What is this much shorter than the vector it is left of is rounding, not direction.
_VANISHED = 1e-5


def classifier_gradients(features: Tensor, logits_grad: Tensor) -> Tensor:
    """Gradient of each image's loss with respect to the weight of a 1x1 classifier convolution.

    Args:
        features: (N, D, H, W), what goes into the convolution.
        logits_grad: (N, C, H, W), gradient of each image's own loss with respect to what comes out.

    Returns:
        (N, C * D): outer products of the two, summed over pixels.
    """
    return torch.einsum('nchw,ndhw->ncd', logits_grad, features).flatten(1)


def select_diverse(gradients: Tensor, num_keep: int, generator: torch.Generator) -> Tensor:
    """Greedy choice of the images whose gradients together explain most of the mean gradient.

    The residual starts as the mean gradient. Again and again, the image whose gradient has the
    largest inner product with it is taken, and what lies in the span of those taken is removed from
    it. Once nothing is left of the residual the rest is drawn at random. The release draws each
    image with a probability proportional to the inner product; here the largest is taken.

    Args:
        gradients: (N, P), one row for each image.
        num_keep: K, in [1, N].
        generator: of the random draws, on the same device.

    Returns:
        (K,) int64, ascending.
    """
    gradients = gradients.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    drawn = torch.rand(len(gradients), generator=generator, device=gradients.device)
    residual = gradients.mean(dim=0)
    vanished = _VANISHED * residual.norm()
    taken = torch.zeros_like(drawn, dtype=torch.bool)
    basis = gradients.new_zeros(num_keep, gradients.shape[1])
    chosen = []
    for step in range(num_keep):
        score = torch.where(residual.norm() > vanished, (gradients @ residual).abs(), drawn)
        best = score.masked_fill(taken, -1).argmax().reshape(1)
        chosen.append(best)
        taken = taken.index_fill(0, best, True)
        gradient = gradients.index_select(0, best).squeeze(0)
        direction = gradient
        for _ in range(2):  # once would leave rounding errors in the span of the others
            direction = direction - basis.T @ (basis @ direction)
        norm = direction.norm()
        unit = torch.where(norm > _VANISHED * gradient.norm(), direction / norm, 0)
        basis[step] = unit
        residual = residual - (residual @ unit) * unit
    return torch.cat(chosen).sort().values
