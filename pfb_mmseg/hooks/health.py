"""Warnings in the log where pruning does not work as it should, each given once."""

from __future__ import annotations

import logging

import numpy as np
from mmengine.logging import print_log

from .step_clock import StepClock

# Relative difference up to which float32 scores count as equal.
_EQUAL = 1e-5
# Blocked steps before times are compared.
_ENOUGH_STEPS = 50
# Share of the time saved in steps that should reach the wall clock.
_ARRIVES = 0.75
# Share of the run that must be lost before the loader is named.
_WORTH_TELLING = 0.03


class Health:
    """Looks at each interval of the log and warns, naming the options that help."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._scored = 0
        self._differing = 0

    def see_scores(self, score: np.ndarray) -> None:
        """Count a scored batch; (N,)."""
        finite = score[np.isfinite(score)]
        if len(finite) > 1:
            self._scored += 1
            self._differing += np.ptp(finite) > _EQUAL * max(1, np.abs(finite).max())

    def check(self, clock: StepClock) -> None:
        """Warn of what went wrong since the last call, or of the time lost so far."""
        if self._scored and not self._differing:
            self._tell(
                'equal scores',
                'all images of a batch had the same score, so the choice between them is '
                'arbitrary. Are the images different, and labelled if the criterion reads labels? '
                'If they are, the features at the blocking point may be equal: try another one, '
                "block_after='backbone...'.",
            )
        self._scored = self._differing = 0
        of_steps, saved = clock.step_time_saved, clock.time_saved
        if clock.num_blocked < _ENOUGH_STEPS or of_steps is None:
            return
        if of_steps < 0:
            self._tell(
                'time lost',
                f'PFB has cost {-of_steps:.0%} more time than full steps would have taken: looking '
                'at all images takes longer than dropping some of them saves. Try a larger '
                'prune_ratio, or a cheaper look: an earlier block_after, score_scale=0.5 with '
                "strategy='two_pass', or criterion='hard' where the whole network is asked.",
            )
        elif saved < min(_ARRIVES * of_steps, of_steps - _WORTH_TELLING):
            self._tell(
                'loader',
                f'blocking saves {of_steps:.0%} of the time of the training steps, but the run is '
                f'only {max(saved, 0):.0%} shorter: the steps wait for the data loader. '
                'Raise train_dataloader.num_workers, with persistent_workers=True, make the '
                'pipeline cheaper, or leave images out before they are loaded, '
                "train_dataloader=dict(batch_sampler=dict(type='PFBBatchSampler')).",
            )

    def _tell(self, sign: str, sentence: str) -> None:
        if sign not in self._told:
            self._told.add(sign)
            print_log(f'PFB: {sentence}', logger='current', level=logging.WARNING)
