"""Runs that count epochs as runs of the same length that count iterations: comparable by time."""

from __future__ import annotations

import copy
import math
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..convert.apply import type_name

# Of these an epoch is a step, so that a stretched one would fall otherwise.
_BY_STEP = ('ExponentialLR', 'CosineRestartLR')


def count_iterations(cfg: Config, num_processes: int = 1) -> None:
    """Changes a config in place so that its loop, its schedule and its hooks count iterations.

    Nothing is changed where they do. Images are drawn without end, each once before any comes
    again, so that batches are full also where an epoch ends; what an epoch lasts otherwise stays
    the same. A learning rate that moved from epoch to epoch moves from iteration to iteration.

    Args:
        cfg: of a run.
        num_processes: of the run, each of which loads ``train_dataloader.batch_size`` images.

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
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        _stretch(scheduler, length)
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook.get('type')) == 'PFBHook' and hook.pop('by_epoch', False):
            for key in ('begin', 'end'):
                if isinstance(hook.get(key), int):
                    hook[key] *= length
    hooks = cfg.get('default_hooks') or {}
    logger = {'type': 'LoggerHook', **hooks.get('logger', {}), 'log_metric_by_epoch': False}
    checkpoint = {'type': 'CheckpointHook', 'interval': 1, **hooks.get('checkpoint', {})}
    if checkpoint.get('by_epoch', True):
        checkpoint.update(by_epoch=False, interval=checkpoint['interval'] * length)
    cfg.default_hooks = {**hooks, 'logger': logger, 'checkpoint': checkpoint}
    cfg.log_processor = {**(cfg.get('log_processor') or {}), 'by_epoch': False}


def _epoch_length(cfg: Config, num_processes: int) -> int:
    loader = cfg.train_dataloader
    sampler = loader.get('sampler') or {}
    if type_name(sampler.get('type')) != 'DefaultSampler' or not sampler.get('shuffle', True):
        raise ValueError(
            f'train_dataloader.sampler={dict(sampler)}: epochs are counted in iterations for '
            "dict(type='DefaultSampler', shuffle=True) only"
        )
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    size = len(DATASETS.build(copy.deepcopy(loader.dataset)))
    batches = math.ceil(size / num_processes) / loader.batch_size
    return max(1, math.floor(batches) if loader.get('drop_last') else math.ceil(batches))


def _stretch(scheduler: dict[str, Any], length: int) -> None:
    if not scheduler.get('by_epoch', True):
        return
    if type_name(scheduler['type']) in _BY_STEP:
        raise ValueError(
            f'param_scheduler {scheduler["type"]} counts epochs; in a comparison, which counts '
            'iterations, use one with an end, such as CosineAnnealingLR or MultiStepLR'
        )
    for key in ('begin', 'end', 'T_max', 'total_steps', 'step_size'):
        if scheduler.get(key) is not None:
            scheduler[key] *= length
    if 'milestones' in scheduler:
        scheduler['milestones'] = [moment * length for moment in scheduler['milestones']]
    scheduler.pop('convert_to_iter_based', None)
    scheduler['by_epoch'] = False
