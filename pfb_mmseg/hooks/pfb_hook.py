"""PFBHook: when to prune, what to tell, what to refuse."""

from __future__ import annotations

import logging
from collections.abc import Sized
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import find_latest_checkpoint
from torch import Tensor

from ..blocking import share_behind
from ..compat import find_distributions, why_no_resume
from ..core import Selection, SelectionStatistics
from ..core.checks import check_integer, check_keys
from ..reporting import SelectionRecord
from ..segmentors.mixin import PartialForwardBlocking
from .step_clock import StepClock

RECORD_NAME = 'pfb_record.npz'


@HOOKS.register_module()
class PFBHook(Hook):
    """Runs the schedule of a model with :class:`PFBMixin`, and shows what it does.

    Before ``begin`` and from ``end`` on every step is a plain one. In between, batches are pruned
    as soon as the centroids are seeded. Each interval the log gets, over the steps since the last:
    ``pfb/kept`` and ``pfb/candidates`` (images), ``pfb/log_density_kept`` and
    ``pfb/log_density_dropped`` (means), ``pfb/nonfinite`` (images, if there were any),
    ``pfb/centroids`` (how many received a sample in the last 200 updates), and ``pfb/time_saved``,
    the share saved since the start against the median full step of this very run.
    ``<work_dir>/pfb_record.npz`` gets the counts per image, see :class:`SelectionRecord`.

    Args:
        begin: first pruned iteration, as a fraction of the run (float) or an iteration (int).
            Table S5 gives 5 of 200 epochs.
        end: first iteration that is not pruned any more; Table S5 gives 180 of 200 epochs.
        interval: iterations between two entries in the log; None is LoggerHook's.

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model has no ``pfb``, ``begin`` does not come before ``end``, there are two hooks
            or no images, or a batch is so small that nothing could ever be pruned.
        RuntimeError: the run is to be resumed, and MMEngine would fail to.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        begin: float | int = 0.025,
        end: float | int = 0.9,
        interval: int | None = None,
        **unknown: Any,
    ) -> None:
        check_keys('PFBHook', unknown, ('begin', 'end', 'interval'))
        for name, value in (('begin', begin), ('end', end)):
            _check_moment(name, value)
        if interval is not None:
            check_integer('interval', interval, low=1)
        if type(begin) is type(end) and begin >= end:
            raise ValueError(f'begin={begin!r} must come before end={end!r}')
        self.begin = begin
        self.end = end
        self.interval = interval
        self.clock = StepClock()
        self.record = SelectionRecord()
        self._statistics = SelectionStatistics()
        self._pending: _Pending | None = None

    def before_run(self, runner) -> None:
        """Refuse to resume where MMEngine would fail to, before it does."""
        if runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir)):
            reason = why_no_resume(find_distributions(), torch.__version__)
            if reason:
                raise RuntimeError(reason)

    def before_train(self, runner) -> None:
        """Resolve the schedule and refuse what cannot work."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._pfb = _find_pfb(model)
        self._check_runner(runner)
        self._begin = _iteration(self.begin, runner.max_iters)
        self._end = _iteration(self.end, runner.max_iters)
        if not self._begin < min(self._end, runner.max_iters):
            raise ValueError(
                f'begin={self.begin!r} is iteration {self._begin}, end={self.end!r} is iteration '
                f'{self._end} of {runner.max_iters}: begin must come before end, and before the '
                'end of the run'
            )
        self._check_batch_size(runner.train_dataloader.batch_size)
        self._warn_of_what_comes_later(runner)
        if self.interval is None:
            loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self._interval = loggers[0].interval if loggers else 50
        else:
            self._interval = self.interval
        quota, point = self._pfb.pruner.quota, self._pfb.point
        share = share_behind(model, point, lambda image: model(image, mode='tensor'))
        print_log(
            f'PFB blocks {quota.prune_ratio:.0%} of the images behind backbone.{point.name} '
            f'({point.num_channels} channels, {self._pfb.strategy}), where '
            f'{"an unknown share" if share is None else f"{share:.0%}"} of the forward pass is '
            f'still to come, in iterations {self._begin} to {self._end} of {runner.max_iters}; '
            f'at least {quota.min_keep} image(s) are kept.',
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
        self._settle_record()
        batch_size = len(data_batch['inputs'])
        if selection is None:
            self._statistics.count_full(batch_size)
        else:
            self._statistics.add(selection)
            self._pending = _Pending(data_batch, selection)
        if self.every_n_train_iters(runner, self._interval) or self.is_last_train_iter(runner):
            self._log(runner)

    def after_train(self, runner) -> None:
        """Write the record of all processes."""
        self._settle_record()
        merged = SelectionRecord()
        for state in all_gather_object(self.record.state_dict()):
            merged.merge(SelectionRecord.from_state_dict(state))
        if is_main_process():
            merged.save(Path(runner.work_dir) / RECORD_NAME)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._settle_record()
        record = self.record.state_dict()
        checkpoint['pfb'] = {
            'clock': self.clock.state_dict(),
            'record': {k: torch.from_numpy(v) if k != 'paths' else v for k, v in record.items()},
        }

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        state = checkpoint.get('pfb')
        if state is not None and runner._resume:
            self.clock.load_state_dict(state['clock'])
            self.record = SelectionRecord.from_state_dict(state['record'])

    def _check_runner(self, runner) -> None:
        hooks = [hook for hook in runner.hooks if isinstance(hook, PFBHook)]
        if len(hooks) > 1:
            raise ValueError(f'custom_hooks has {len(hooks)} of PFBHook: expected one')
        dataset = runner.train_dataloader.dataset
        if isinstance(dataset, Sized) and len(dataset) == 0:
            raise ValueError(
                'the training data set is empty; check data_root, data_prefix and ann_file of '
                'train_dataloader.dataset'
            )
        loader = runner.train_dataloader
        if loader.drop_last and isinstance(loader.sampler, DefaultSampler) and len(loader) == 0:
            raise ValueError(
                f'train_dataloader has no batch: {len(loader.sampler)} image(s) per process, '
                f'batch_size={loader.batch_size}, drop_last=True; lower batch_size or leave '
                'drop_last out'
            )

    def _warn_of_what_comes_later(self, runner) -> None:
        """What a long run should not learn only at its end."""
        pruner, iters = self._pfb.pruner, min(self._end, runner.max_iters) - self._begin
        images = (runner.train_dataloader.batch_size or 0) * runner.world_size
        if images and not pruner.ready and pruner.estimator.num_centroids > images * iters:
            _warn(
                f'Nothing will be pruned: seeding {pruner.estimator.num_centroids} centroids takes '
                f'as many images, and the {iters} iterations from begin to end have '
                f'{images * iters}. Set estimator=dict(num_centroids=...) to less, or train longer.'
            )
        reason = why_no_resume(find_distributions(), torch.__version__)
        if reason:
            _warn(f'If this run is interrupted, it cannot be resumed as things are. {reason}')

    def _check_batch_size(self, batch_size: int | None) -> None:
        quota = self._pfb.pruner.quota
        if batch_size is None or quota.prune_ratio == 0 or quota.mean(batch_size) < batch_size:
            return
        raise ValueError(
            f'with {batch_size} image(s) per process and at least {quota.min_keep} to be kept, '
            f'nothing can ever be pruned at prune_ratio={quota.prune_ratio}; raise '
            'train_dataloader.batch_size'
            + (
                '. Two images are kept because a head normalises single pixels with BatchNorm; '
                'with another norm_cfg, min_keep=1 may be set'
                if quota.min_keep == 2
                else ''
            )
        )

    def _log(self, runner) -> None:
        totals = self._statistics.flush()
        if not totals.get('nonfinite'):
            totals.pop('nonfinite', None)
        if self._pfb.pruner.needs_features:
            totals['centroids'] = float(self._pfb.pruner.estimator.num_active())
        if self.clock.time_saved is not None:
            totals['time_saved'] = self.clock.time_saved
        for name, value in totals.items():
            runner.message_hub.update_scalar(f'train/pfb/{name}', value)

    def _settle_record(self) -> None:
        """Write down the step before this one, whose selection is on the host by now."""
        if self._pending is not None:
            self.record.add(*self._pending.read())
            self._pending = None


class _Pending:
    """A selection on its way to the host."""

    def __init__(self, data_batch: dict, selection: Selection) -> None:
        self._paths = [_path(sample) for sample in data_batch['data_samples']]
        self._kept = _start_copy(selection.kept)
        self._log_density = (
            None if selection.log_density is None else _start_copy(selection.log_density)
        )
        self._arrived = None
        if selection.indices.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> tuple[list[str], np.ndarray, np.ndarray | None]:
        if self._arrived is not None:
            self._arrived.synchronize()
        log_density = None if self._log_density is None else self._log_density.numpy()
        return self._paths, self._kept.numpy(), log_density


def _start_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _path(sample: Any) -> str:
    return str(getattr(sample, 'img_path', '<no path>'))


def _find_pfb(model: Any) -> PartialForwardBlocking:
    pfb = getattr(model, 'pfb', None)
    if not isinstance(pfb, PartialForwardBlocking):
        raise ValueError(
            f'PFBHook needs a model with PFBMixin, got {type(model).__name__}; use '
            "type='PFBEncoderDecoder' with pfb=dict(prune_ratio=...), or remove the hook"
        )
    return pfb


def _warn(sentence: str) -> None:
    print_log(sentence, logger='current', level=logging.WARNING)


def _check_moment(name: str, value: Any) -> None:
    allowed = 'a fraction of the run (float in [0, 1]) or an iteration (int >= 0)'
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name}={value!r}: expected {allowed}')
    if value < 0 or (not isinstance(value, Integral) and not value <= 1):
        raise ValueError(f'{name}={value!r}: expected {allowed}')


def _iteration(moment: float | int, max_iters: int) -> int:
    return int(moment) if isinstance(moment, Integral) else round(moment * max_iters)
