"""How long a run is whose epochs are shorter than the data set."""

from __future__ import annotations

from collections.abc import Callable

# (epoch counted from 0, epochs of the run) -> share of the data set that the epoch trains on.
Share = Callable[[int, float], float]


def mean_share(num_epochs: float, share: Share) -> float:
    """Share of the candidates of a whole run that is trained on; the last epoch may not end.

    Args:
        num_epochs: of the run on full data, more than 0.
        share: of an epoch.
    """
    trained, epoch = 0.0, 0
    while epoch < num_epochs:
        trained += min(1.0, num_epochs - epoch) * share(epoch, num_epochs)
        epoch += 1
    return trained / num_epochs


def shortened_iters(full_iters: int, images_per_iter: int, dataset_size: int, share: Share) -> int:
    """Iterations that get through the candidates of a run on full data.

    Args:
        full_iters: iterations of the run on full data.
        images_per_iter: images of an iteration, over all processes.
        dataset_size: samples of the data set.
        share: of an epoch, see :func:`mean_share`.
    """
    num_epochs = full_iters * images_per_iter / dataset_size
    return max(1, round(full_iters * mean_share(num_epochs, share)))
