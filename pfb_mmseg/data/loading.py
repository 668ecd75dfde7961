"""What a run tells a PFBBatchSampler: when to leave images out, and how they scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.runner import IterBasedTrainLoop

from ..core import Selection
from ..models import PartialForwardBlocking
from .batch_sampler import SKIPPED, PFBBatchSampler
from .places import Places

_NOT_PROPOSED = -1  # fills a short batch up


class Loading:
    """Drives the :class:`PFBBatchSampler` of a run with the scores of the images that were loaded.

    Args:
        runner: before its first step.
        pfb: of the model; it is read only.
        begin, end: iterations between which PFB chooses.
        state: of the sampler, in the checkpoint of a resumed run.

    Raises:
        ValueError: PFB would have nothing to choose from, or its criterion has no score.
    """

    def __init__(
        self,
        runner: Any,
        pfb: PartialForwardBlocking,
        begin: int,
        end: int,
        state: dict[str, Any] | None,
    ) -> None:
        loader, loop = runner.train_dataloader, runner.train_loop
        self.sampler: PFBBatchSampler = loader.batch_sampler
        self._quota, self._ranks = pfb.quota, pfb.pruner.ranks
        criterion = pfb.pruner.criterion
        skip, ratio = self.sampler.skip_loading, pfb.quota.prune_ratio
        if not skip < ratio:
            raise ValueError(
                f'skip_loading={skip} of the images are left out before they are loaded, and '
                f'prune_ratio={ratio} of them in all: expected skip_loading < prune_ratio'
            )
        if criterion.score_name is None:
            raise ValueError(
                f'{type(criterion).__name__} has no score of an image that PFBBatchSampler could '
                "remember; use criterion='hard' or 'rare', or remove batch_sampler"
            )
        self._sought = criterion.sought
        self._places = Places(loader.dataset)
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        discards = by_iteration and not getattr(loop, 'fast_forward_on_resume', False)
        self.sampler.start(
            self._places.of_index,
            begin=begin,
            end=end,
            ahead=loader.num_workers * (loader.prefetch_factor or 0),
            iteration=runner.iter,
            num_discarded=runner.iter if discards else 0,
        )
        if state is not None:
            self.sampler.load_state_dict(state)

    def describe(self) -> str:
        """How many images are loaded and trained on, for the log."""
        batch, skip = self.sampler.batch_size, self.sampler.skip_loading
        kept = float(self._quota.mean(batch)) / batch
        return (
            f'PFBBatchSampler leaves out {skip:.0%} of the images before they are loaded, from '
            f'iteration {self.sampler.begin} on and once each was scored: of 100 images '
            f'{100 * (1 - skip):.0f} are loaded and {100 * kept:.0f} are trained on.'
        )

    def before_step(self, data_batch: Any) -> int:
        """Let the samples of a batch tell which they are; returns how many were proposed."""
        self._proposed, self._loaded = self.sampler.take()
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        self._places.mark(samples, self._proposed[self._loaded])
        return len(self._proposed)

    def after_step(self, selections: Sequence[Selection]) -> None:
        """Remember how the images scored, in all processes. Waits for the device.

        Args:
            selections: one for each call of ``loss``; as many in every process.
        """
        scored = [selection for selection in selections if selection.score is not None]
        if not scored:
            return
        found: dict[int, float] = {}
        for selection in scored:
            places = self._places.find(selection.samples)
            found.update(zip(places.tolist(), standings(selection, self._sought), strict=True))
        mine = self._places.of_index[self._proposed]
        standing = np.array([found.get(place, np.nan) for place in mine.tolist()], np.float32)
        standing[~self._loaded] = SKIPPED
        rows = np.full((self.sampler.batch_size, 2), _NOT_PROPOSED, np.int32)
        rows[: len(mine), 0] = self._proposed
        rows[: len(mine), 1] = standing.view(np.int32)
        sent = torch.from_numpy(rows).to(scored[0].score.device)
        rows = self._ranks.gather(sent).wait().cpu().numpy()
        rows = rows[rows[:, 0] != _NOT_PROPOSED]
        standing = np.ascontiguousarray(rows[:, 1]).view(np.float32)
        self.sampler.update(rows[:, 0].astype(np.int64), standing)


def standings(selection: Selection, sought: int) -> np.ndarray:
    """(N,) float32 in [0, 1]: places of the images of a batch in order of their scores, 1 for the
    one that is wanted most; NaN where there is no score.

    Args:
        selection: with scores.
        sought: 1 where high scores are wanted, -1 where low ones are.
    """
    score = sought * selection.on_host.score.numpy()
    places = np.full(len(score), np.nan, np.float32)
    finite = np.flatnonzero(np.isfinite(score))
    order = finite[np.argsort(score[finite], kind='stable')]
    places[order] = (np.arange(len(order)) + 0.5) / max(1, len(order))
    return places
