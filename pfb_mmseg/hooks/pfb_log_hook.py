"""PFBLogHook: what is kept, what it saves, and what looks wrong."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ..core import SelectionStatistics
from ..core.checks import check_integer, check_keys
from .health import Health
from .log_entries import LogEntries
from .model import find_filter
from .preflight import check_only_one
from .step_clock import StepClock


@HOOKS.register_module()
class PFBLogHook(Hook):
    """Tells in the log what a model with :class:`PFBMixin` does; :class:`PFBHook` registers it.

    With every entry of LoggerHook these scalars are in its line and reach the Visualizer's
    backends, over the steps since the last one and of this process alone:

    - ``pfb/kept`` and ``pfb/candidates``: images trained on, and looked at.
    - ``pfb/proposed``: images that those looked at were loaded from, with PFBBatchSampler.
    - ``pfb/log_density_kept`` and ``pfb/log_density_dropped``: means of the criterion's score, and
      named after it: ``pfb/exit_loss_kept``. Absent where no image was scored.
    - ``pfb/nonfinite``: images without a finite score, if there were any.
    - ``pfb/centroids``: how many received a sample in the last 200 updates.
    - ``pfb/time_saved``: share of the wall clock saved since the start of the run, from iteration
      to iteration, loading included, against full iterations of this very run, and
      ``pfb/step_time_saved``: that of the steps alone, against its full steps, see
      :class:`StepClock`. Absent until both are known.

    Other hooks read them as ``runner.message_hub.get_scalar('train/pfb/kept').current()``, in
    ``after_train_iter`` after this hook or whenever they like, ``log_processor.custom_cfg`` as
    ``data_src='pfb/kept'``. A window is over so many entries, see :class:`LogEntries`.

    What looks wrong is warned of once, see :class:`Health`, and behind the run the log says what
    was saved.

    What became of a step is read when the step is over. MMEngine's RuntimeInfoHook has waited for
    the device by then, to log the losses; in a loop without it, it is this hook that waits.

    Args:
        interval: iterations between two further entries, beside LoggerHook's; None: no others, or
            every 50 where there is no LoggerHook. The last iteration always makes one.

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model has no ``pfb``, or there are two hooks.
    """

    # After RuntimeInfoHook (10), which waits for the device, and close to the step, since the clock
    # is here; before PFBRecordHook (56), whose work is none of the step's, and LoggerHook (60).
    priority = 54

    def __init__(self, interval: int | None = None, **unknown: Any) -> None:
        check_keys('PFBLogHook', unknown, ('interval',))
        if interval is not None:
            check_integer('interval', interval, low=1)
        self.clock = StepClock()
        self._entries = LogEntries('pfb/', interval)
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
        selection = self._pfb.selection
        self.clock.stop(full=selection is None)
        batch_size = len(data_batch['inputs'])
        self._proposed += self._pfb.pruner.num_proposed or 0
        if selection is None:
            self._statistics.count_full(batch_size)
        else:
            found = selection.on_host
            self._statistics.add(found)
            if found.num_kept < found.num_candidates and found.score is not None:
                self._health.see_scores(found.score.numpy())
        if self._pfb.pruning:
            num_kept = batch_size if selection is None else selection.num_kept
            ready = selection is None or self._pfb.pruner.ready
            self._health.see_step(ready, num_kept, batch_size)
        if self._entries.due(runner, batch_idx):
            self._entries.add(runner, batch_idx, self._scalars())
            scoring_pass = self._pfb.pruner.criterion.scoring_pass
            self._health.check(
                self._pfb.quota, self._pfb.estimator, batch_size, self.clock, scoring_pass
            )

    def before_val_epoch(self, runner) -> None:
        self.clock.pause()

    def after_train(self, runner) -> None:
        if words := _in_words(self.clock):
            print_log(f'PFB: {words}', logger='current')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self.clock.pause()
        checkpoint.setdefault('pfb', {}).update(
            statistics=self._statistics.state_dict(),
            clock=self.clock.state_dict(),
            proposed=self._proposed,
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume and 'statistics' in checkpoint.get('pfb', {}):
            self._statistics.load_state_dict(checkpoint['pfb']['statistics'])
            self.clock.load_state_dict(checkpoint['pfb']['clock'])
            self._proposed = checkpoint['pfb'].get('proposed', 0)

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


def _in_words(clock: StepClock) -> str:
    """The wall clock, and the steps alone where they differ by a point or the other is unknown."""
    of_steps, saved = clock.step_time_saved, clock.time_saved
    if of_steps is None:
        return ''
    if saved is None:
        return f'time of the steps saved {of_steps:.1%}'
    words = f'time saved {saved:.1%}'
    return words if abs(saved - of_steps) < 0.01 else f'{words} (of the steps alone {of_steps:.1%})'
