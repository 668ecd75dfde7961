"""PFBHook: when to prune, and what to refuse."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop

from ..blocking import is_sharded
from ..core.checks import check_bool
from ..data.batch_sampler import PFBBatchSampler
from ..data.loading import Loading
from ..models.description import describe
from ..report.versions import installed_versions
from .model import find_filter, unwrapped
from .pfb_log_hook import PFBLogHook
from .pfb_record_hook import PFBRecordHook
from .preflight import (
    check_can_resume,
    check_loader,
    check_only_one,
    describe_quota,
    full_batch,
    warn_of_what_comes_later,
)
from .saved import drop_model_state, part_to_resume, part_to_save
from .trial import try_blocked_step


@HOOKS.register_module()
class PFBHook(Hook):
    """Runs the schedule of a model with :class:`PFBMixin`.

    Steps are plain before ``begin`` and from ``end`` on. In between, batches are pruned as soon as
    the criterion is ready (``'rare'``: the centroids are seeded). What cannot work is refused
    before the first iteration.

    Two other hooks keep the books: :class:`PFBLogHook` logs what is kept and what that saves,
    :class:`PFBRecordHook` records what becomes of each image. This hook registers them, unless
    ``custom_hooks`` lists them.

    A resumed run goes on with all of PFB's state. A run that takes its weights from a checkpoint
    without being resumed (``load_from`` alone) starts with new PFB state: density, exit and
    iteration count of other data would decide wrongly.

    Args:
        begin: first pruned iteration, as a fraction of the run (float) or an iteration (int).
            Table S5 gives 5 of 200 epochs.
        end: first iteration that is not pruned any more; Table S5 gives 180 of 200 epochs.
        by_epoch: ``begin`` and ``end``, if integers, count epochs; for EpochBasedTrainLoop.

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model has no ``pfb``, ``begin`` does not come before ``end``, there are two hooks
            or no images, or a batch is so small that nothing could ever be pruned.
        RuntimeError: the run is to be resumed, and MMEngine would fail to.
    """

    # After EMAHook (50): it exchanges the weights of a checkpoint for its average, and this hook
    # takes back that of the density estimate. Before those that it registers (54, 56).
    priority = 52

    def __init__(
        self, begin: float | int = 0.025, end: float | int = 0.9, by_epoch: bool = False
    ) -> None:
        check_bool('by_epoch', by_epoch)
        unit = 'an epoch' if by_epoch else 'an iteration'
        for name, value in (('begin', begin), ('end', end)):
            high = float('inf') if isinstance(value, Integral) else 1
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= high:
                raise ValueError(
                    f'{name}={value!r}: expected a fraction of the run (float in [0, 1]) or {unit} '
                    '(int >= 0)'
                )
        if isinstance(begin, Integral) == isinstance(end, Integral) and begin >= end:
            raise ValueError(f'begin={begin!r} must come before end={end!r}')
        if isinstance(end, Integral) and end == 1 and not by_epoch:
            raise ValueError(
                f'end={end!r} is iteration 1 and would leave nothing to prune; write end=1.0 for '
                'the end of the run'
            )
        self._schedule = begin, end
        self._by_epoch = by_epoch
        self._loading: Loading | None = None
        self._loading_state: dict[str, Any] | None = None

    def before_run(self, runner) -> None:
        """Refuse to resume where MMEngine would fail to, before it does."""
        if runner._resume:
            check_can_resume(runner.work_dir, runner._load_from)
        self._register_bookkeeping(runner)

    def before_train(self, runner) -> None:
        """Resolve the schedule and refuse what cannot work."""
        self._pfb = find_filter(runner.model)
        check_only_one(runner.hooks, self)
        check_loader(runner.train_dataloader, self._pfb.quota)
        self._begin, self._end = self._resolve(runner.train_loop)
        if not is_sharded(runner.model, unwrapped(runner.model)):
            self._pfb.prepare()
            try_blocked_step(runner, self._pfb)
        batch_size = full_batch(runner.train_dataloader)
        num_ranks = self._pfb.pruner.ranks.size
        self._pfb.start_run(batch_size)
        warn_of_what_comes_later(
            self._pfb.estimator,
            min(self._end, runner.max_iters) - self._begin,
            (batch_size or 0) * num_ranks,
        )
        print_log(
            f'{describe(self._pfb)}, in iterations {self._begin} to {self._end} of '
            f'{runner.max_iters}. {describe_quota(self._pfb.quota, batch_size, num_ranks)}',
            logger='current',
        )
        if isinstance(runner.train_dataloader.batch_sampler, PFBBatchSampler):
            self._loading = Loading(runner, self._pfb, self._begin, self._end, self._loading_state)
            print_log(self._loading.describe(), logger='current')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        proposed = self._loading.before_step(data_batch) if self._loading else None
        self._pfb.start_iteration(self._begin <= runner.iter < self._end, proposed)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self._loading:
            self._loading.after_step(self._pfb.selections)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        _publish_live_state(checkpoint)
        part = part_to_save(checkpoint)
        part['world_size'] = find_filter(runner.model).pruner.ranks.size
        part['versions'] = installed_versions()
        if self._loading:
            part['loading'] = self._loading.sampler.state_dict()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Drop PFB's state unless the run is resumed; FlexibleRunner calls this first of all."""
        self._register_bookkeeping(runner)
        if not runner._resume:
            if drop_model_state(checkpoint):
                print_log(
                    'The checkpoint gives its weights. PFB starts with new state, since the run is '
                    'not resumed.',
                    logger='current',
                )
            return
        state = part_to_resume(runner, checkpoint)
        if not state:
            print_log(
                'The checkpoint was written without PFBHook: weights, optimizer and schedule go '
                'on from it, the record of kept images and the clock start anew.',
                logger='current',
            )
            return
        self._loading_state = state.get('loading')
        num_ranks = find_filter(runner.model).pruner.ranks.size
        if state['world_size'] != num_ranks:
            print_log(
                f'The checkpoint was written by {state["world_size"]} process(es), this run has '
                f'{num_ranks}. The state of the criterion, the record and the schedule go on, but '
                'batches hold other images from here on, so other images are kept.',
                logger='current',
            )

    def _resolve(self, loop: BaseLoop) -> tuple[int, int]:
        """First pruned iteration, and the first that is not pruned any more."""
        if self._by_epoch and isinstance(loop, IterBasedTrainLoop):
            raise ValueError(
                f'by_epoch=True: {type(loop).__name__} counts iterations; give begin and end as '
                'iterations or as fractions of the run, or train with EpochBasedTrainLoop'
            )
        unit = len(loop.dataloader) if self._by_epoch else 1
        begin, end = (
            moment * unit if isinstance(moment, Integral) else round(moment * loop.max_iters)
            for moment in self._schedule
        )
        if not begin < min(end, loop.max_iters):
            raise ValueError(
                f'begin={self._schedule[0]!r} is iteration {begin}, end={self._schedule[1]!r} is '
                f'iteration {end} of {loop.max_iters}: begin must come before end, and before the '
                'end of the run'
            )
        return int(begin), int(end)

    def _register_bookkeeping(self, runner) -> None:
        """Once, and behind this hook: a list that runs through its hooks may only grow there."""
        for kind in (PFBLogHook, PFBRecordHook):
            if not any(isinstance(hook, kind) for hook in runner.hooks):
                runner.register_hook(kind())


def _publish_live_state(checkpoint: dict) -> None:
    """Take back EMAHook's exchange where nothing is averaged: its copy never learns."""
    weights, averaged = checkpoint.get('state_dict', {}), checkpoint.get('ema_state_dict', {})
    for key in weights:
        if averaged and 'pfb' in key.split('.') and key.endswith('_extra_state'):
            weights[key] = averaged.setdefault(f'module.{key}', weights[key])
