"""What PFBHook does where images are left out before they are loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader

from ..core import Selection
from ..models import PartialForwardBlocking
from .batch_sampler import SKIPPED, PFBBatchSampler

_NOT_PROPOSED = -1  # fills a short batch up


class Loading:
    """Drives a :class:`PFBBatchSampler` with what a model's PFB sees of the images.

    Args:
        sampler: of the training data loader.
        pfb: of the model.

    Raises:
        ValueError: PFB would have nothing to choose from, or its criterion tells nothing of images
            that could be remembered.
    """

    def __init__(self, sampler: PFBBatchSampler, pfb: PartialForwardBlocking) -> None:
        self.sampler, self._pfb = sampler, pfb
        skip, ratio, criterion = sampler.skip_loading, pfb.quota.prune_ratio, pfb.pruner.criterion
        if not skip < ratio:
            raise ValueError(
                f'skip_loading={skip} of the images are left out before they are loaded, and '
                f'prune_ratio={ratio} of them in all: expected skip_loading < prune_ratio'
            )
        if criterion.score_name is None:
            raise ValueError(
                f'{type(criterion).__name__} measures nothing that could be remembered of an image '
                "for PFBBatchSampler; use criterion='hard' or 'rare', or remove batch_sampler"
            )

    def start(self, runner: Any, begin: int, end: int, state: dict[str, Any] | None) -> None:
        """Before the first step of a run, which may be resumed.

        Args:
            runner: of the run.
            begin, end: iterations between which PFB chooses.
            state: what the sampler knew when the checkpoint was written; None: nothing.
        """
        loader, loop = runner.train_dataloader, runner.train_loop
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        discards = by_iteration and not getattr(loop, 'fast_forward_on_resume', False)
        images = self.sampler.batch_size * self._pfb.pruner.ranks.size
        self.sampler.start(
            size=len(loader.dataset),
            begin=begin + -(-len(loader.dataset) // images),
            end=end,
            ahead=_ahead(loader),
            iteration=runner.iter,
            num_discarded=runner.iter if discards else 0,
        )
        if state is not None:
            self.sampler.load_state_dict(state)

    def describe(self) -> str:
        """How many images come so far, for the log."""
        batch, skip = self.sampler.batch_size, self.sampler.skip_loading
        kept = float(self._pfb.quota.mean(batch)) / batch
        return (
            f'PFBBatchSampler leaves out {skip:.0%} of the images before they are loaded, from '
            f'iteration {self.sampler.begin} on: of 100 images {100 * (1 - skip):.0f} are loaded '
            f'and {100 * kept:.0f} are trained on.'
        )

    def before_step(self) -> int:
        """Of how many images those that were loaded are a part."""
        self._proposed, self._loaded = self.sampler.take()
        return len(self._proposed)

    def after_step(self) -> None:
        """Remember what PFB saw of the images, over all processes. Waits for the device."""
        selection, ranks = self._pfb.selection, self._pfb.pruner.ranks
        if selection is None or selection.score is None:
            return
        standing = np.full(self.sampler.batch_size, np.nan, np.float32)
        indices = np.full(self.sampler.batch_size, _NOT_PROPOSED, np.int32)
        num = len(self._proposed)
        indices[:num] = self._proposed
        standing[:num][self._loaded] = standings(selection, self._pfb.pruner.criterion.sought)
        standing[:num][~self._loaded] = SKIPPED
        rows = torch.from_numpy(np.stack([indices, standing.view(np.int32)], axis=1))
        rows = ranks.gather(rows.to(selection.score.device)).wait().cpu().numpy()
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


def _ahead(loader: DataLoader) -> int:
    """Batches that the workers of a loader are asked for before they are needed."""
    return loader.num_workers * (loader.prefetch_factor or 0)
