"""A random part of the data, drawn once before training: the paper's baseline "Random"."""

from __future__ import annotations

from collections.abc import Sized

import torch
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor

from ..core.checks import check_number
from ..core.draws import generator_of
from .score_sampler import ScoreSampler

_ONCE = -1  # the turn before the first epoch


@DATA_SAMPLERS.register_module()
class FixedPartSampler(ScoreSampler):
    """A ScoreSampler whose epochs are all the same random part of the data, in a new order.

    "Single-shot random pruning" in Tables 1 and 2 of the PFB paper: what is not drawn is never
    seen. No score is looked at.

    Args:
        dataset: anything with a length.
        prune_ratio: share of the data set that is left out of the whole run, in [0, 1).
        seed: see ScoreSampler.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    def __init__(self, dataset: Sized, prune_ratio: float = 0.5, seed: int | None = None) -> None:
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
        super().__init__(dataset, seed)
        self.prune_ratio = prune_ratio
        self.num_kept = max(1, round((1 - prune_ratio) * self.size))

    def draw(self, epoch: int, generator: torch.Generator) -> tuple[Tensor, None]:
        order = torch.randperm(self.size, generator=generator_of(self.seed, _ONCE))
        part = order[: self.num_kept]
        return part[torch.randperm(len(part), generator=generator)], None

    def __str__(self) -> str:
        return f'a random part of the data, {1 - self.prune_ratio:.1%}, drawn once'
