"""PFBLogHook: what is kept, what it saves, and what looks wrong."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import HOOKS

from ..core import Selection
from .health import Health
from .model import find_filter
from .preflight import check_only_one
from .saved import part_to_resume, part_to_save
from .step_clock import StepClock


@HOOKS.register_module()
class PFBLogHook(Hook):
    """Logs what a model with :class:`PFBMixin` keeps; :class:`PFBHook` registers it.

    These scalars are in each entry of LoggerHook and reach the Visualizer's backends. The last
    iteration always makes an entry. They cover the steps since the last entry, and this process
    alone. Where ``loss`` is called several times in a step, each call counts.

    - ``pfb/kept`` and ``pfb/candidates``: images trained on, and images that ``loss`` was given.
    - ``pfb/proposed``: images before PFBBatchSampler left some out.
    - ``pfb/log_density_kept`` and ``pfb/log_density_dropped``: means of the criterion's score, and
      named after it: ``pfb/exit_loss_kept``. Absent where no image was scored.
    - ``pfb/nonfinite``: images without a finite score, if there were any.
    - ``pfb/centroids``: how many received a sample in the last 200 updates.
    - ``pfb/time_saved`` and ``pfb/step_time_saved``: share of the wall clock saved since the start
      of the run, and that of the steps alone. Absent before a blocked step and a full one, of
      which the first is not counted.

    The hook warns once of each thing that looks wrong and says at the end of the run what was
    saved. It reads the selections of a step after the step. By then MMEngine's RuntimeInfoHook has
    waited for the device, to log the losses; in a loop without that hook, this one waits.

    Raises:
        ValueError: before the first iteration, the model has no ``pfb``, or there are two hooks.
    """

    # After RuntimeInfoHook (10), which waits for the device, and close to the step, since the clock
    # is here; before PFBRecordHook (56), whose work is none of the step's, and LoggerHook (60).
    priority = 54

    def __init__(self) -> None:
        self.clock = StepClock()
        self._health = Health()
        # Since the last entry: numbers of images, and sums of scores with the images behind each.
        self._sums: Counter[str] = Counter()
        self._num_scored: Counter[str] = Counter()

    def before_train(self, runner) -> None:
        self._pfb = find_filter(runner.model)
        check_only_one(runner.hooks, self)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self.clock.start()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        pfb = self._pfb
        self.clock.stop(full=not pfb.selections)
        found = [selection.on_host for selection in pfb.selections]
        num_full = pfb.num_images - sum(selection.num_candidates for selection in found)
        self._sums.update(kept=num_full, candidates=num_full, proposed=pfb.pruner.num_proposed or 0)
        for selection in found:
            self._sums.update(kept=selection.num_kept, candidates=selection.num_candidates)
            if selection.score is not None:
                self._count_scores(selection)
        logged = _is_logged(runner, batch_idx)
        if logged or runner.iter + 1 == runner.max_iters:
            scalars = self._scalars()
            _hand_to_logger(runner, scalars)
            if not logged:  # nobody else hands them on
                runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
            self._health.check(self.clock)

    def before_val_epoch(self, runner) -> None:
        self.clock.pause()

    def after_train(self, runner) -> None:
        if self.clock.time_saved is not None:
            print_log(
                f'PFB: time saved {self.clock.time_saved:.1%} '
                f'(of the steps alone {self.clock.step_time_saved:.1%})',
                logger='current',
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self.clock.pause()
        part_to_save(checkpoint).update(
            sums=dict(self._sums), num_scored=dict(self._num_scored), clock=self.clock.state_dict()
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        part = part_to_resume(runner, checkpoint)
        if 'clock' in part:
            self._sums, self._num_scored = Counter(part['sums']), Counter(part['num_scored'])
            self.clock.load_state_dict(part['clock'])

    def _count_scores(self, selection: Selection) -> None:
        """Of a blocked call; on the host."""
        finite = selection.score.isfinite()
        self._sums['nonfinite'] += int((~finite).sum())
        for end, rows in (('kept', selection.kept), ('dropped', ~selection.kept)):
            if (rows & finite).any():
                name, scores = f'{selection.score_name}_{end}', selection.score[rows & finite]
                self._sums[name] += scores.sum(dtype=torch.float64).item()
                self._num_scored[name] += len(scores)
        if selection.num_kept < selection.num_candidates:
            self._health.see_scores(selection.score.numpy())

    def _scalars(self) -> dict[str, int | float]:
        """Totals since the last call, by the names that they have in the log."""
        scalars = {name: number for name, number in self._sums.items() if number}
        for name, number in self._num_scored.items():
            scalars[name] = self._sums[name] / number
        self._sums, self._num_scored = Counter(), Counter()
        if self._pfb.estimator is not None:
            scalars['centroids'] = int(self._pfb.estimator.num_active())
        for name in ('time_saved', 'step_time_saved'):
            if (share := getattr(self.clock, name)) is not None:
                scalars[name] = share
        return {f'pfb/{name}': value for name, value in scalars.items()}


def _is_logged(runner, batch_idx: int) -> bool:
    """LoggerHook's own condition over again, since it comes later and does not tell beforehand."""
    loader = runner.train_dataloader
    return any(
        hook.every_n_inner_iters(batch_idx, hook.interval)
        or (
            hook.end_of_epoch(loader, batch_idx)
            and (not hook.ignore_last or len(loader) <= hook.interval)
        )
        for hook in runner.hooks
        if isinstance(hook, LoggerHook)
    )


def _hand_to_logger(runner, scalars: dict[str, int | float]) -> None:
    """Put scalars into the message hub, from where LoggerHook takes them in this iteration."""
    history = runner.message_hub.log_scalars
    for key in [key for key in history if key.startswith('train/pfb/')]:
        if key.removeprefix('train/') not in scalars:  # LoggerHook would repeat the last value
            del history[key]
            # Or a resumed run would warn that it is missing.
            runner.message_hub._resumed_keys.pop(key, None)
    averaged = getattr(runner.log_processor, 'mean_pattern', None)
    for name, value in scalars.items():
        # LogProcessor averages what is called a loss or a time. These values are of a whole
        # interval already: of a history of one value, any average is the same number.
        if averaged is not None and re.search(averaged, name):
            history.setdefault(f'train/{name}', HistoryBuffer(max_length=1))
        runner.message_hub.update_scalar(f'train/{name}', value)
