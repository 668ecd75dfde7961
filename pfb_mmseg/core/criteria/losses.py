"""What the network gets wrong: told by an exit behind its shallow part, or by all of it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..candidates import Candidates
from ..checks import check_number
from ..criterion import CRITERIA, Criterion


@CRITERIA.register_module('hard')
class Hard(Criterion):
    """The images of highest loss at the early exit stay.

    Costs the shallow part of a forward pass, as ``'rare'`` does, and a small head behind it, where
    ``'loss_topk'`` pays for the whole network.

    Args:
        skip: share of each batch, in [0, 1), with the highest losses of all that is left out, since
            it may be labelled wrongly. Rounded down to whole images. Must be smaller than the
            share that is pruned.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    score_name = 'exit_loss'
    keeps = 'those of highest loss at the early exit'
    scoring_pass = 'exit'
    exit_loss_weight = 1.0

    def __init__(self, skip: float = 0.0) -> None:
        super().__init__()
        check_number('skip', skip, 0, 1, open_high=True)
        self.skip = skip

    def check_ratio(self, prune_ratio: float) -> None:
        if self.skip and self.skip >= prune_ratio:
            raise ValueError(
                f'skip={self.skip} of the images are left out for their high losses, and '
                f'prune_ratio={prune_ratio} in all, so that the easiest would stay; set skip to '
                'less than prune_ratio'
            )

    def observe(self, candidates: Candidates) -> Tensor:
        """(N,) loss of each image at the exit."""
        return candidates.exit_losses()

    def importance(self, score: Tensor, generator: Generator) -> Tensor:
        """The loss; that of the very highest counts as the lowest."""
        skipped = int(self.skip * len(score))
        if not skipped:
            return score
        highest = score.nan_to_num(-torch.inf).topk(skipped).indices
        return score.index_fill(0, highest, -torch.inf)


@CRITERIA.register_module('loss_topk')
class LossTopK(Criterion):
    """The images of highest loss stay (ordered SGD, Kawaguchi and Lu, AISTATS 2020).

    Every image goes through the whole network once, without gradient, in eval mode.
    """

    score_name = 'loss'
    keeps = 'those of highest loss after a forward pass of all'
    scoring_pass = 'whole'

    def observe(self, candidates: Candidates) -> Tensor:
        """(N,) loss of each image in the decode head."""
        return candidates.losses()
