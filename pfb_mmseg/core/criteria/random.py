"""The control that every criterion has to beat: a new random part of each batch stays."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..candidates import Candidates
from ..criterion import CRITERIA, Criterion


@CRITERIA.register_module('random')
class Random(Criterion):
    """Every image stays with the same chance, in each step anew. Looks at no image."""

    keeps = 'a random part'
    scoring_pass = 'none'

    def observe(self, candidates: Candidates) -> Tensor:
        """(N,) zeros: that there is an image is all there is to know."""
        return torch.zeros(candidates.num, device=candidates.device)

    def importance(self, score: Tensor, generator: Generator) -> Tensor:
        """(N,) numbers in [0, 1)."""
        return torch.rand(len(score), generator=generator, device=score.device)
