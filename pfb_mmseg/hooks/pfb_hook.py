"""PFBHook: when to prune, what to tell, what to refuse."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ..blocking import is_sharded
from ..core import AdaptiveDensityEstimator, Selection, SelectionStatistics
from ..core.checks import check_integer, check_keys
from ..core.ranks import Ranks
from ..reporting import RECORD_NAME, SelectionRecord, class_pixels
from ..reporting.files import write_atomically
from ..reporting.versions import installed_versions
from .health import Health
from .model import find_filter, unwrapped
from .preflight import (
    check_can_resume,
    check_loader,
    describe_quota,
    warn_of_strategy,
    warn_of_what_comes_later,
)
from .schedule import Schedule
from .step_clock import StepClock

# Iterations between two collections of the record: what travels then is bounded by the images of
# so many batches, and so is what a checkpoint that nobody announced may lack.
_COLLECT_EVERY = 50


@HOOKS.register_module()
class PFBHook(Hook):
    """Runs the schedule of a model with :class:`PFBMixin`, and shows what it does.

    Before ``begin`` and from ``end`` on every step is a plain one. In between, batches are pruned
    as soon as the centroids are seeded. Each interval one line of the log tells the share kept,
    the time saved and the centroids in use, and the Visualizer's backends get, over the steps since
    the last: ``pfb/kept`` and ``pfb/candidates`` (images), ``pfb/log_density_kept`` and
    ``pfb/log_density_dropped`` (means, named after the criterion's score: ``pfb/exit_loss_kept``),
    ``pfb/nonfinite`` (images, if there were any), ``pfb/centroids`` (how many received a sample in
    the last 200 updates), and the shares of time saved since the start: ``pfb/time_saved`` of the
    wall clock from iteration to iteration, loading included, against full iterations of this very
    run, and ``pfb/step_time_saved`` of the steps alone, against its full steps, see
    :class:`StepClock`. What looks wrong is warned of once, see :class:`Health`.

    With every checkpoint, and in it, :class:`SelectionRecord` is written: what became of each
    image, merged over all processes of the model's ``process_group``: that of the first process,
    where there are several groups. Its file is ``<work_dir>/pfb_record.npz``. In a checkpoint
    that is not saved by CheckpointHook, the other processes' last iterations, 49 at most, are
    missing.

    What became of a step is read when the step is over. MMEngine's RuntimeInfoHook has waited for
    the device by then, to log the losses; in a loop without it, it is this hook that waits.

    Args:
        begin: first pruned iteration, as a fraction of the run (float) or an iteration (int).
            Table S5 gives 5 of 200 epochs.
        end: first iteration that is not pruned any more; Table S5 gives 180 of 200 epochs.
        interval: iterations between two entries in the log; None is LoggerHook's.
        by_epoch: ``begin`` and ``end``, if integers, count epochs; for EpochBasedTrainLoop.

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model has no ``pfb``, ``begin`` does not come before ``end``, there are two hooks
            or no images, or a batch is so small that nothing could ever be pruned.
        RuntimeError: the run is to be resumed, and MMEngine would fail to.
    """

    priority = 55  # after EMAHook (50), before LoggerHook (60)

    def __init__(
        self,
        begin: float | int = 0.025,
        end: float | int = 0.9,
        interval: int | None = None,
        by_epoch: bool = False,
        **unknown: Any,
    ) -> None:
        check_keys('PFBHook', unknown, ('begin', 'end', 'interval', 'by_epoch'))
        self._schedule = Schedule(begin, end, by_epoch)
        if interval is not None:
            check_integer('interval', interval, low=1)
        self.interval = interval
        self.clock = StepClock()
        # Of all processes up to the last collection, on the first one; and of this one since then.
        self.record = SelectionRecord()
        self._fresh = SelectionRecord()
        self._ranks = Ranks()  # the model's, once there is one to be trained
        self._health = Health()
        self._statistics = SelectionStatistics()
        self._classes: list[str] = []
        self._num_iters = 0  # of the run; none where it only validates

    def before_run(self, runner) -> None:
        """Refuse to resume where MMEngine would fail to, before it does."""
        if runner._resume:
            check_can_resume(runner.work_dir, runner._load_from)

    def before_train(self, runner) -> None:
        """Resolve the schedule and refuse what cannot work."""
        self._pfb = find_filter(runner.model)
        self._ranks = self._pfb.pruner.ranks
        hooks = [hook for hook in runner.hooks if isinstance(hook, PFBHook)]
        if len(hooks) > 1:
            raise ValueError(f'custom_hooks has {len(hooks)} of PFBHook: expected one')
        check_loader(runner.train_dataloader, self._pfb.quota)
        self._begin, self._end = self._schedule.resolve(runner.train_loop)
        if not is_sharded(runner.model, unwrapped(runner.model)):
            self._pfb.prepare()
        warn_of_strategy(getattr(runner, 'strategy', None))
        self._classes = _classes(runner.train_dataloader)
        self._num_iters = runner.max_iters
        self._start_afresh()
        batch_size, num_ranks = runner.train_dataloader.batch_size, self._ranks.size
        if batch_size is not None:  # the first batch of a run may be a short one
            self._pfb.pruner.full_size = batch_size
        warn_of_what_comes_later(
            self._pfb.estimator,
            min(self._end, runner.max_iters) - self._begin,
            (batch_size or 0) * num_ranks,
        )
        if self.interval is None:
            loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self._interval = loggers[0].interval if loggers else 50
        else:
            self._interval = self.interval
        print_log(
            f'{self._pfb.describe()}, in iterations {self._begin} to {self._end} of '
            f'{runner.max_iters}. {describe_quota(self._pfb.quota, batch_size, num_ranks)}',
            logger='current',
        )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._pfb.pruning = self._begin <= runner.iter < self._end
        self.clock.start()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        selection = self._pfb.selection
        self.clock.stop(full=selection is None)
        batch_size = len(data_batch['inputs'])
        if selection is None:
            self._statistics.count_full(batch_size)
        else:
            self._statistics.add(selection)
        if selection is None or selection.num_kept == selection.num_candidates:
            self._fresh.add_full(runner.iter, batch_size)
        else:
            self._write_down(runner.iter, data_batch['data_samples'], selection)
        if self._pfb.pruning:
            num_kept = batch_size if selection is None else selection.num_kept
            ready = selection is None or self._pfb.pruner.ready
            self._health.see_step(ready, num_kept, batch_size)
        due = self.every_n_train_iters(runner, self._interval) or self.is_last_train_iter(runner)
        if due:
            self._log(runner, batch_size)
        if self.every_n_train_iters(runner, _COLLECT_EVERY) or _checkpoint_due(runner):
            self._collect()

    def before_val_epoch(self, runner) -> None:
        """A best checkpoint may be saved behind it."""
        self.clock.pause()
        self._collect()

    def after_train_epoch(self, runner) -> None:
        self._collect()

    def after_train(self, runner) -> None:
        self._collect()
        if is_main_process():
            self.record.save(Path(runner.work_dir) / RECORD_NAME)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write the record, which the first process holds, beside the checkpoint and into it."""
        self.clock.pause()
        _publish_live_state(checkpoint)
        checkpoint['pfb'] = {
            'world_size': self._ranks.size,
            'statistics': self._statistics.state_dict(),
            'clock': self.clock.state_dict(),
            'versions': installed_versions(),
        }
        if not is_main_process():  # FSDPStrategy has every process write a checkpoint
            return
        self.record.merge(self._fresh)
        self._start_afresh()
        record = self.record.to_bytes()
        write_atomically(Path(runner.work_dir) / RECORD_NAME, record)
        checkpoint['pfb']['record'] = torch.frombuffer(bytearray(record), dtype=torch.uint8)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        state = checkpoint.get('pfb')
        if state is None:
            print_log(
                'The checkpoint was written without PFBHook: weights, optimizer and schedule go '
                'on from it, the record of kept images and the clock start afresh.',
                logger='current',
            )
            return
        ranks = find_filter(runner.model).pruner.ranks
        if state['world_size'] != ranks.size:
            print_log(
                f'The checkpoint was written by {state["world_size"]} process(es), this run has '
                f'{ranks.size}: the density estimate, the record and the schedule go on; '
                'from here on batches are made up differently, so what is kept will differ.',
                logger='current',
            )
        self._statistics.load_state_dict(state['statistics'])
        self.clock.load_state_dict(state['clock'])
        if ranks.rank == 0:  # once: the processes' records are added up
            # MMEngine puts whatever a checkpoint holds on the device; the record lives on the host.
            self.record = SelectionRecord.from_bytes(state['record'].cpu().numpy().tobytes())

    def _log(self, runner, batch_size: int) -> None:
        totals = self._statistics.flush()
        if not totals.get('nonfinite'):
            totals.pop('nonfinite', None)
        estimator = self._pfb.estimator
        if estimator is not None:
            totals['centroids'] = float(estimator.num_active())
        for name in ('time_saved', 'step_time_saved'):
            if (share := getattr(self.clock, name)) is not None:
                totals[name] = share
        scalars = {f'pfb/{name}': value for name, value in totals.items()}
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        print_log(_in_words(totals, estimator, self._pfb.pruning), logger='current')
        scoring_pass = self._pfb.pruner.criterion.scoring_pass
        self._health.check(self._pfb.quota, estimator, batch_size, self.clock, scoring_pass)

    def _write_down(self, iteration: int, data_samples: list, selection: Selection) -> None:
        """Note which images were kept, and their scores. Waits for the device."""
        paths = [str(getattr(sample, 'img_path', '<no path>')) for sample in data_samples]
        score, pixels = selection.score, class_pixels(data_samples, len(self._classes))
        if score is not None:
            score = score.cpu().numpy()
            self._health.see_scores(score)
        self._fresh.add(
            iteration,
            paths,
            selection.kept.cpu().numpy(),
            score,
            None if pixels is None else pixels.cpu().numpy(),
            selection.score_name,
        )

    def _collect(self) -> None:
        """Add what all processes saw since the last time to the first one's record.

        Some 20 bytes an image travel, to that process alone, and one number to each to know the
        largest part by.
        """
        mine = zlib.compress(pickle.dumps(self._fresh), level=1)
        for part in self._ranks.collect(mine):
            self.record.merge(pickle.loads(zlib.decompress(part)))
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._fresh = SelectionRecord(self._classes, self._num_iters)


def _classes(dataloader: Any) -> list[str]:
    """Names of the data set's classes; none if it does not tell."""
    metainfo = getattr(getattr(dataloader, 'dataset', None), 'metainfo', {})
    return [str(name) for name in metainfo.get('classes') or ()]


def _checkpoint_due(runner: Any) -> bool:
    """Whether CheckpointHook, which runs after this one, saves in this iteration."""
    return any(
        isinstance(hook, CheckpointHook)
        and not hook.by_epoch
        and hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
        for hook in runner.hooks
    )


def _in_words(
    totals: dict[str, float], estimator: AdaptiveDensityEstimator | None, pruning: bool
) -> str:
    kept, candidates = totals['kept'], totals['candidates']
    words = [
        f'kept {kept / candidates:.0%} of {candidates:.0f} images'
        if kept < candidates
        else f'kept all {candidates:.0f} images'
    ]
    if saved := _saved_in_words(totals.get('time_saved'), totals.get('step_time_saved')):
        words.append(saved)
    if estimator is not None and pruning:
        words.append(f'{totals["centroids"]:.0f} of {estimator.num_centroids} centroids in use')
    return f'PFB: {", ".join(words)}'


def _saved_in_words(time_saved: float | None, step_time_saved: float | None) -> str:
    """The wall clock, and the steps alone where they differ by a point or the other is unknown."""
    if step_time_saved is None:
        return ''
    if time_saved is None:
        return f'time of the steps saved so far {step_time_saved:.1%}'
    words = f'time saved so far {time_saved:.1%}'
    if abs(time_saved - step_time_saved) < 0.01:
        return words
    return f'{words} (of the steps alone {step_time_saved:.1%})'


def _publish_live_state(checkpoint: dict) -> None:
    """Take back EMAHook's exchange where nothing is averaged: its copy never learns."""
    weights, averaged = checkpoint.get('state_dict', {}), checkpoint.get('ema_state_dict', {})
    for key in weights:
        if averaged and key.startswith('pfb.') and key.endswith('_extra_state'):
            weights[key] = averaged.setdefault(f'module.{key}', weights[key])
