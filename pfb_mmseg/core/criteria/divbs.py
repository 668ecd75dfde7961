"""DivBS: a diverse subset of a batch, by last-layer gradients (Hong et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..candidates import Candidates
from ..criterion import CRITERIA, Criterion

# What is this much shorter than the vector it is left of is rounding, not direction.
_VANISHED = 1e-5


def classifier_gradients(features: Tensor, logits_grad: Tensor) -> Tensor:
    """(N, C * D), gradient of each image's loss with respect to the weight of its model's last
    layer: outer products, summed over pixels, of what goes into it, (N, D, H, W) or (N, D), and the
    gradient of what comes out, (N, C, H, W) or (N, C)."""
    return torch.einsum('nc...,nd...->ncd', logits_grad, features).flatten(1)


def logits_gradient(logits: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of ``losses``, which makes (N,) of logits (N, ...), with respect to these."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(leaf).sum(), leaf)
    return gradient


def diverse_order(gradients: Tensor, generator: Generator) -> Tensor:
    """Greedy order of the images: the first K together explain most of the mean gradient.

    The residual starts as the mean gradient. Again and again, the image whose gradient has the
    largest inner product with it is taken, and what lies in the span of those taken is removed from
    it. Once nothing is left of the residual the rest is drawn at random. The release draws each
    image with a probability proportional to the inner product; here the largest is taken.

    Args:
        gradients: (N, P), one row for each image.
        generator: of the random draws, on the same device.

    Returns:
        (N,) int64, a permutation.
    """
    num = len(gradients)
    gradients = gradients.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    drawn = torch.rand(num, generator=generator, device=gradients.device)
    residual = gradients.mean(dim=0)
    vanished = _VANISHED * residual.norm()
    taken = torch.zeros_like(drawn, dtype=torch.bool)
    basis = torch.zeros_like(gradients)
    order = []
    for step in range(num):
        score = torch.where(residual.norm() > vanished, (gradients @ residual).abs(), drawn)
        best = score.masked_fill(taken, -1).argmax().reshape(1)
        order.append(best)
        taken = taken.index_fill(0, best, True)
        gradient = gradients.index_select(0, best).squeeze(0)
        direction = gradient
        for _ in range(2):  # once would leave rounding errors in the span of the others
            direction = direction - basis.T @ (basis @ direction)
        norm = direction.norm()
        unit = torch.where(norm > _VANISHED * gradient.norm(), direction / norm, 0)
        basis[step] = unit
        residual = residual - (residual @ unit) * unit
    return torch.cat(order)


@CRITERIA.register_module('divbs')
class DivBS(Criterion):
    """A diverse part of the batch stays, see :func:`diverse_order`.

    Every image goes through the whole network once, without gradient, in eval mode.
    """

    keeps = 'a diverse part (DivBS)'
    scoring_pass = 'whole'

    def observe(self, candidates: Candidates) -> Tensor:
        """(N, P) gradients of the classifier."""
        return candidates.classifier_gradients()

    def importance(self, score: Tensor, generator: Generator) -> Tensor:
        """(N, P) gradients -> (N,): minus the place of each image in the order."""
        order = diverse_order(score, generator)
        places = torch.arange(len(order), device=order.device, dtype=torch.float32)
        importance = torch.empty_like(places).index_copy_(0, order, -places)
        # What has no gradient adds nothing.
        return importance.masked_fill(~score.isfinite().all(dim=1), torch.nan)
