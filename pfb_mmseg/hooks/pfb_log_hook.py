"""PFBLogHook: what is kept, what it saves, and what looks wrong."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ..core import SelectionStatistics
from .health import Health
from .log_entries import add_entry, entry_is_due
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
      of the run, and that of the steps alone. Absent before a full and a blocked step.

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
        self._statistics = SelectionStatistics()
        self._proposed = 0

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
        num_looked = sum(selection.num_candidates for selection in found)
        self._proposed += pfb.pruner.num_proposed or 0
        self._statistics.count_full(pfb.num_images - num_looked)
        for selection in found:
            self._statistics.add(selection)
            if selection.num_kept < selection.num_candidates and selection.score is not None:
                self._health.see_scores(selection.score.numpy())
        if entry_is_due(runner, batch_idx):
            add_entry(runner, batch_idx, self._scalars())
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
            statistics=self._statistics.state_dict(),
            clock=self.clock.state_dict(),
            proposed=self._proposed,
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        part = part_to_resume(runner, checkpoint)
        if 'statistics' in part:
            self._statistics.load_state_dict(part['statistics'])
            self.clock.load_state_dict(part['clock'])
            self._proposed = part['proposed']

    def _scalars(self) -> dict[str, int | float]:
        """Totals since the last call, by the names that they have in the log."""
        totals = self._statistics.flush()
        counts = {name: int(totals.pop(name, 0)) for name in ('kept', 'candidates', 'nonfinite')}
        if not counts['nonfinite']:
            del counts['nonfinite']
        scalars = counts | totals
        if self._proposed:
            scalars['proposed'], self._proposed = self._proposed, 0
        if self._pfb.estimator is not None:
            scalars['centroids'] = int(self._pfb.estimator.num_active())
        for name in ('time_saved', 'step_time_saved'):
            if (share := getattr(self.clock, name)) is not None:
                scalars[name] = share
        return {f'pfb/{name}': value for name, value in scalars.items()}
