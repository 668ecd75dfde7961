"""How long a run is: with its whole schedule stretched, and in iterations instead of epochs."""

from __future__ import annotations

import copy
import math
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..convert.apply import type_name
from ..core.checks import check_integer

# The moments of a scheduler.
_MOMENTS = ('begin', 'end', 'T_max', 'total_steps', 'step_size', 'milestones')
# Of these an epoch is a step, so that a stretched one would fall otherwise.
_BY_STEP = ('ExponentialLR', 'CosineRestartLR')


def full_iters(cfg: Config) -> int:
    """``train_cfg.max_iters``.

    Raises:
        ValueError: the loop counts epochs.
    """
    if 'max_iters' not in (cfg.get('train_cfg') or {}):
        raise ValueError(
            'train_cfg has no max_iters: methods are compared in runs of IterBasedTrainLoop'
        )
    return cfg.train_cfg.max_iters


def set_iters(cfg: Config, max_iters: int) -> None:
    """Makes a run ``max_iters`` >= 1 long, in place.

    The learning-rate schedule, the validation interval and PFBHook's ``begin`` and ``end`` keep
    their places relative to the run.

    Raises:
        TypeError, ValueError: ``max_iters`` is outside its range, or the loop or a scheduler counts
            epochs.
    """
    check_integer('max_iters', max_iters, low=1)
    ratio = max_iters / full_iters(cfg)
    for scheduler in _schedulers_of(cfg):
        if scheduler.get('by_epoch', True):
            raise ValueError(
                f'param_scheduler {scheduler.type} counts epochs (by_epoch=True), but the run '
                'counts iterations; set by_epoch=False'
            )
        _stretch(scheduler, _MOMENTS, ratio)
    _stretch(cfg.train_cfg, ('val_interval',), ratio)
    cfg.train_cfg.max_iters = max_iters
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook.get('type')) in ('PFBHook', 'InfoBatchHook'):
            _stretch(hook, ('begin', 'end', 'full_iters'), ratio)


def count_iterations(cfg: Config, num_processes: int = 1) -> None:
    """Changes a config in place so that its loop, its schedule and its hooks count iterations, of
    ``train_dataloader.batch_size`` images of each process.

    Nothing is changed where they do. Images are drawn without end, each once before any comes
    again, so that batches are full also where an epoch ends; what an epoch lasts otherwise stays
    the same. A learning rate that moved from epoch to epoch moves from iteration to iteration.

    Raises:
        ValueError: images are not drawn in plain epochs, or a learning rate falls by a factor in
            each of them.
    """
    loop = cfg.get('train_cfg') or {}
    if 'max_epochs' not in loop:
        return
    length = _epoch_length(cfg, num_processes)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop',
        max_iters=loop['max_epochs'] * length,
        val_interval=loop.get('val_interval', 1) * length,
    )
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    for scheduler in _schedulers_of(cfg):
        if not scheduler.get('by_epoch', True):
            continue
        if type_name(scheduler['type']) in _BY_STEP:
            raise ValueError(
                f'param_scheduler {scheduler["type"]} counts epochs; in a comparison, which counts '
                'iterations, use one with an end, such as CosineAnnealingLR or MultiStepLR'
            )
        _stretch(scheduler, _MOMENTS, length)
        scheduler.pop('convert_to_iter_based', None)
        scheduler['by_epoch'] = False
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook.get('type')) == 'PFBHook' and hook.pop('by_epoch', False):
            _stretch(hook, ('begin', 'end'), length)
    hooks = cfg.get('default_hooks') or {}
    logger = {'type': 'LoggerHook', **hooks.get('logger', {}), 'log_metric_by_epoch': False}
    checkpoint = {'type': 'CheckpointHook', 'interval': 1, **hooks.get('checkpoint', {})}
    if checkpoint.get('by_epoch', True):
        checkpoint.update(by_epoch=False, interval=checkpoint['interval'] * length)
    cfg.default_hooks = {**hooks, 'logger': logger, 'checkpoint': checkpoint}
    cfg.log_processor = {**(cfg.get('log_processor') or {}), 'by_epoch': False}


def _schedulers_of(cfg: Config) -> list[dict[str, Any]]:
    """A config may name one or a list."""
    found = cfg.get('param_scheduler') or []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _stretch(options: dict[str, Any], names: tuple[str, ...], ratio: float) -> None:
    """Multiplies moments; 0, none at all and a float, which is a share of the run, stay."""

    def scaled(moment: int) -> int:
        return max(1, round(moment * ratio)) if moment else moment

    for name in names:
        moment = options.get(name)
        if isinstance(moment, (list, tuple)):
            options[name] = [scaled(one) for one in moment]
        elif isinstance(moment, int):
            options[name] = scaled(moment)


def _epoch_length(cfg: Config, num_processes: int) -> int:
    loader = cfg.train_dataloader
    sampler = loader.get('sampler') or {}
    if type_name(sampler.get('type')) != 'DefaultSampler' or not sampler.get('shuffle', True):
        raise ValueError(
            f'train_dataloader.sampler={dict(sampler)}: epochs are counted in iterations for '
            "dict(type='DefaultSampler', shuffle=True) only"
        )
    batches = math.ceil(dataset_size(cfg) / num_processes) / loader.batch_size
    return max(1, math.floor(batches) if loader.get('drop_last') else math.ceil(batches))


def dataset_size(cfg: Config) -> int:
    """Images to train on; the data set is built to count them."""
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    return len(DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset)))
