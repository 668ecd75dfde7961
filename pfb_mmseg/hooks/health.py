"""Warnings in the log where pruning does not work as it should, each given once."""

from __future__ import annotations

import logging

import numpy as np
from mmengine.logging import print_log

from ..core import AdaptiveDensityEstimator, KeepQuota
from .step_clock import StepClock

# Share of the kept images above which one centroid stands for too many.
_NEARLY_EVERYTHING = 0.9
# Relative difference up to which float32 scores count as equal.
_EQUAL = 1e-5
# Blocked steps before times are compared.
_ENOUGH_STEPS = 50
# Share of the time saved in steps that should reach the wall clock.
_ARRIVES = 0.75
# Share of the run that must be lost before the loader is named.
_WORTH_TELLING = 0.03
_SHALLOW = (
    'running all images up to the blocking point takes longer than dropping some of them saves. '
    'Try an earlier block_after or a larger prune_ratio; with strategy="two_pass" also '
    'score_scale=0.5.'
)
# Why a step is not shorter, and what helps, by the criterion's scoring pass.
_LOST = {
    'none': 'the choice takes longer than dropping some images saves. Try a larger prune_ratio.',
    'shallow': _SHALLOW,
    'exit': _SHALLOW,
    'whole': 'scoring, a forward pass of the whole network, takes longer than dropping images '
    "saves. Try criterion='hard', which runs the shallow part alone, or a larger prune_ratio.",
}


class Health:
    """Looks at each interval of the log and warns, naming the options that help."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._scored = 0
        self._differing = 0
        self._ready_steps = 0
        self._pruned_steps = 0

    def see_step(self, ready: bool, num_kept: int, num_candidates: int) -> None:
        """Count a step within the schedule; ``ready``: images could have been dropped."""
        self._ready_steps += ready
        self._pruned_steps += num_kept < num_candidates

    def see_scores(self, score: np.ndarray) -> None:
        """Count a scored batch; (N,)."""
        finite = score[np.isfinite(score)]
        if len(finite) > 1:
            self._scored += 1
            self._differing += np.ptp(finite) > _EQUAL * max(1, np.abs(finite).max())

    def check(
        self,
        quota: KeepQuota,
        estimator: AdaptiveDensityEstimator | None,
        batch_size: int,
        clock: StepClock,
        scoring_pass: str = 'shallow',
    ) -> None:
        """Warn of what went wrong since the last call. Waits for the device.

        Args:
            quota: how many images stay.
            estimator: of their density, if that is what decides.
            batch_size: images per process in the last step.
            clock: what has been saved so far.
            scoring_pass: of the criterion, see :class:`Criterion`.
        """
        if (
            self._ready_steps
            and not self._pruned_steps
            and quota.mean(batch_size) == batch_size  # and not just of a few steps
            and quota.prune_ratio > 0
        ):
            self._tell(
                'nothing pruned',
                f'no image was dropped in {self._ready_steps} steps: a batch has {batch_size} '
                f'image(s) and at least {quota.min_keep} must be kept, so nothing can be '
                f'pruned at prune_ratio={quota.prune_ratio}. Raise '
                'train_dataloader.batch_size or prune_ratio.',
            )
        if self._scored and not self._differing:
            self._tell(
                'equal scores',
                'all images of a batch had the same score, so the choice between them is '
                'arbitrary. Are the images different, and labelled if the criterion reads labels? '
                'If they are, the features at the blocking point may be equal: try another one, '
                "block_after='backbone...'.",
            )
        if estimator is not None and estimator.num_centroids > 1:
            counts = estimator.counts
            if counts.sum() >= 10 * estimator.num_centroids:
                share = float(estimator.weights.max())
                if share > _NEARLY_EVERYTHING:
                    self._tell(
                        'one centroid',
                        f'one of {estimator.num_centroids} centroids stands for {share:.0%} of '
                        'the kept images: the density tells little more than the distance to it. '
                        'Are the images different? If they are, try a later begin, so that the '
                        'centroids are seeded with better features, or a smaller revive_after.',
                    )
        if clock.num_blocked >= _ENOUGH_STEPS:
            self._check_time(clock, scoring_pass)
        self._begin_interval()

    def _check_time(self, clock: StepClock, scoring_pass: str) -> None:
        of_steps, saved = clock.step_time_saved, clock.time_saved
        if of_steps is not None and of_steps < 0:
            self._tell(
                'time lost',
                f'PFB has cost {-of_steps:.0%} more time than full steps would have taken: '
                + _LOST[scoring_pass],
            )
        elif (
            saved is not None and saved < _ARRIVES * of_steps and saved < of_steps - _WORTH_TELLING
        ):
            self._tell(
                'loader',
                f'blocking saves {of_steps:.0%} of the time of the training steps, but the run is '
                f'only {max(saved, 0):.0%} shorter: {clock.waiting_share:.0%} of the time of a '
                'blocked iteration passes between the steps, mostly waiting for the data loader, '
                'which loads the dropped images as well. Raise train_dataloader.num_workers, with '
                'persistent_workers=True, or make the pipeline cheaper (images stored at the size '
                'they are used at, fewer augmentations), or leave images out before they are '
                "loaded, train_dataloader=dict(batch_sampler=dict(type='PFBBatchSampler')).",
            )

    def _tell(self, sign: str, sentence: str) -> None:
        if sign not in self._told:
            self._told.add(sign)
            print_log(f'PFB: {sentence}', logger='current', level=logging.WARNING)
