"""InfoBatch's arithmetic (Qin et al., ICLR 2024): who is pruned, and how long a run is."""

from __future__ import annotations

import torch
from torch import Tensor


def prune_epoch(
    scores: Tensor, prune_ratio: float, percentile: float | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Who is trained on in an epoch, and with which weight (Eq. 3 and Sec. 3.2).

    Of the samples below the threshold a share of ``prune_ratio`` is left out at random, and the
    others of them count 1 / (1 - prune_ratio) times, so that the expected sum of the weighted
    gradients is that of all samples.

    Args:
        scores: (N,), last known loss of each sample; NaN for one never seen, which is not pruned.
        prune_ratio: r, in [0, 1).
        percentile: the threshold, in [0, 100]; None is the mean of the scores.
        generator: of the draws.

    Returns:
        (K,) int64 indices in random order, and (K,) float64 weights.
    """
    known = scores[~scores.isnan()].double()
    below = torch.zeros(len(scores), dtype=torch.bool)
    if len(known):
        threshold = known.mean() if percentile is None else known.quantile(percentile / 100)
        below = scores < threshold
    candidates = below.nonzero().flatten()
    # Rounded up or down at random: the expectation is exact, for few samples too.
    rounding = torch.rand((), generator=generator, dtype=torch.float64)
    num_dropped = int(prune_ratio * len(candidates) + rounding)
    shuffled = candidates[torch.randperm(len(candidates), generator=generator)]
    weights = torch.ones(len(scores), dtype=torch.float64)
    weights[candidates] = 1 / (1 - prune_ratio)
    stay = torch.ones(len(scores), dtype=torch.bool)
    stay[shuffled[:num_dropped]] = False
    indices = stay.nonzero().flatten()
    indices = indices[torch.randperm(len(indices), generator=generator)]
    return indices, weights[indices]


def shortened_iters(
    full_iters: int,
    images_per_iter: int,
    dataset_size: int,
    prune_ratio: float,
    below: float,
    delta: float = 0.875,
) -> int:
    """Iterations in which InfoBatch gets through the candidates of a run on full data.

    The first epoch has no scores yet and prunes nothing; nor do those from ``delta`` on.

    Args:
        full_iters: iterations of the run on full data.
        images_per_iter: images of an iteration, over all processes.
        dataset_size: samples of an epoch.
        prune_ratio: r, in [0, 1).
        below: expected share of the samples below the threshold: 0.95 for the 95th percentile;
            for the mean it depends on the losses, and a half is what a symmetric distribution has.
        delta: share of the epochs in which samples may be pruned.
    """
    candidates = full_iters * images_per_iter
    trained, epoch = 0.0, 0
    while (begin := epoch * dataset_size) < candidates:
        size = min(dataset_size, candidates - begin)
        pruned = 0 < epoch < delta * candidates / dataset_size
        trained += size * (1 - prune_ratio * below) if pruned else size
        epoch += 1
    return max(1, round(trained / images_per_iter))
