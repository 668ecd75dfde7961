"""Loss top-k: what the network gets wrong, after a forward pass of all of it."""

from __future__ import annotations

from torch import Tensor

from ..candidates import Candidates
from ..criterion import CRITERIA, Criterion


@CRITERIA.register_module('loss_topk')
class LossTopK(Criterion):
    """The images of highest loss stay (ordered SGD, Kawaguchi and Lu, AISTATS 2020).

    Every image goes through the whole network once, without gradient, in eval mode.
    """

    score_name = 'loss'
    scoring_pass = 'whole'

    def observe(self, candidates: Candidates) -> Tensor:
        """(N,) loss of each image in the decode head."""
        return candidates.losses()

    def describe(self) -> str:
        return 'those of highest loss after a forward pass of all'
