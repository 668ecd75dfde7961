"""Each method as a change to a config: same model, data and schedule, another way to train."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from ..blocking import least_trainable
from ..core import KeepQuota
from ..core.checks import check_choice, check_integer, check_number
from ..segmentors.apply import add_import, apply_pfb, remove_pfb, type_name
from .infobatch import shortened_iters

# Of PFB's criteria; None: the config's own.
CRITERIA = {
    'pfb': None,
    'hard': 'hard',
    'random': 'random',
    'common': 'common',
    'loss_topk': 'loss_topk',
    'divbs': 'divbs',
}
# Percentile of the threshold, and the share of the samples that lies below it.
INFOBATCH = {'infobatch': (95, 0.95), 'infobatch_mean': (None, 0.5)}
# With small images at first, and otherwise as the other one.
RESIZED = {'resize': 'full', 'resize_pfb': 'pfb'}
PRUNING_METHODS = (*CRITERIA, *INFOBATCH, 'resize_pfb')
METHODS = ('full', 'short', 'small', 'resize', *PRUNING_METHODS)

DESCRIPTIONS = {
    'full': 'all images',
    'short': 'all images, schedule compressed to the time that a pruned run took',
    'small': 'all images in batches of the size that is kept: random choice without its loading',
    'resize': 'all images, at half size in the first third of the run (progressive resizing)',
    'pfb': "PFB, with the config's own options",
    'hard': 'PFB by the highest losses of an exit at the blocking point',
    'random': 'a new random part of each batch',
    'common': "PFB's criterion reversed: the most common images",
    'loss_topk': 'the highest losses of each batch, after a forward pass of all of it',
    'divbs': 'DivBS: diverse last-layer gradients, after a forward pass of all of the batch',
    'infobatch': 'InfoBatch†: threshold at the 95th percentile, the actual ratio as the others',
    'infobatch_mean': 'InfoBatch*: threshold at the mean, about half the ratio',
    'resize_pfb': 'PFB, with all images at half size in the first third of the run',
}


def apply_method(
    cfg: Config, method: str, prune_ratio: float | None = None, num_processes: int = 1
) -> None:
    """Changes a config in place so that it trains with a method.

    The config may have PFB or not; its options of PFB and its PFBHook serve the methods that prune
    batches, and are taken away for the others. ``'short'`` and ``'small'`` are full data here, the
    latter in smaller batches and at the same learning rate; their length follows from measured
    times and is set with :func:`set_iters`. InfoBatch's schedule is shortened to the expected
    number of iterations in which it gets through the candidates of the run on full data.

    Args:
        cfg: Config of a segmentor, with an iteration-based loop.
        method: one of ``METHODS``.
        prune_ratio: share that is pruned, in [0, 1), or by which the batches of ``'small'`` are
            smaller; None for the others.
        num_processes: of the run, each of which loads ``train_dataloader.batch_size`` images.

    Raises:
        TypeError, ValueError: an argument is outside its range, or the config does not fit.
    """
    check_choice('method', method, METHODS)
    if method in RESIZED:
        apply_method(cfg, RESIZED[method], prune_ratio, num_processes)
        _resize_progressively(cfg)
        return
    if method in ('full', 'short'):
        remove_pfb(cfg)
        return
    check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
    if method == 'small':
        min_keep = (cfg.model.get('pfb') or {}).get('min_keep')
        remove_pfb(cfg)
        _shrink_batches(cfg, prune_ratio, min_keep)
    elif method in CRITERIA:
        apply_pfb(cfg, prune_ratio)
        _choose_criterion(cfg, CRITERIA[method])
    else:
        remove_pfb(cfg)
        _set_type(cfg, 'InfoBatch')
        _apply_infobatch(cfg, prune_ratio, num_processes, *INFOBATCH[method])


def set_iters(cfg: Config, max_iters: int) -> None:
    """Shortens or lengthens a run with its whole schedule, in place.

    The learning-rate schedule, the validation interval and PFBHook's ``begin`` and ``end`` keep
    their places relative to the run.

    Args:
        cfg: with an iteration-based loop and schedule.
        max_iters: of the new run, at least 1.

    Raises:
        TypeError, ValueError: an argument is outside its range, or the loop or a scheduler counts
            epochs.
    """
    check_integer('max_iters', max_iters, low=1)
    old = full_iters(cfg)

    def scale(moment: Any) -> Any:
        if isinstance(moment, (list, tuple)):
            return [scale(one) for one in moment]
        return max(1, round(moment * max_iters / old)) if moment else moment

    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        if scheduler.get('by_epoch', True):
            raise ValueError(
                f'param_scheduler {scheduler.type} counts epochs (by_epoch=True), but the run '
                'counts iterations; set by_epoch=False'
            )
        for key in ('begin', 'end', 'T_max', 'milestones', 'step_size', 'total_steps'):
            if key in scheduler:
                scheduler[key] = scale(scheduler[key])
    cfg.train_cfg.max_iters = max_iters
    if 'val_interval' in cfg.train_cfg:
        cfg.train_cfg.val_interval = scale(cfg.train_cfg.val_interval)
    for hook in _hooks(cfg, 'PFBHook'):
        for key in ('begin', 'end'):
            if isinstance(hook.get(key), int):  # a float is a share of the run already
                hook[key] = scale(hook[key])
    for hook in _hooks(cfg, 'InfoBatchHook'):
        if hook.get('full_iters'):
            hook['full_iters'] = scale(hook['full_iters'])


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


def _choose_criterion(cfg: Config, criterion: str | None) -> None:
    """Names the criterion, unless the config has it already, perhaps with options of its own."""
    found = cfg.model.pfb.get('criterion')
    name = found.get('type') if isinstance(found, dict) else found
    if criterion not in (None, name):
        cfg.model.pfb.criterion = criterion


def _resize_progressively(cfg: Config) -> None:
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    found = preprocessor.get('type')
    if type_name(found) != 'SegDataPreProcessor':
        raise ValueError(
            f'model.data_preprocessor.type={found!r}: images are resized during training for '
            'SegDataPreProcessor only'
        )
    cfg.model.data_preprocessor = {**preprocessor, 'type': 'mmseg.ResizingSegDataPreProcessor'}
    hook = dict(type='ProgressiveResizeHook')
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    add_import(cfg)


def _shrink_batches(cfg: Config, prune_ratio: float, min_keep: int | None) -> None:
    if min_keep is None:
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        min_keep = least_trainable(MODELS.build(copy.deepcopy(cfg.model)))
    full = cfg.train_dataloader.batch_size
    kept = round(KeepQuota(prune_ratio, min_keep).mean(full))
    if kept == full:
        raise ValueError(
            f'small at prune_ratio={prune_ratio}: batches of {full} image(s), of which at least '
            f'{min_keep} must stay, cannot be smaller; raise train_dataloader.batch_size or the '
            'ratio'
        )
    cfg.train_dataloader.batch_size = kept


def _apply_infobatch(
    cfg: Config, prune_ratio: float, num_processes: int, percentile: float | None, below: float
) -> None:
    candidates = full_iters(cfg)
    # The scope is MMSegmentation's: the data set is only counted, in this process.
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    dataset_size = len(DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset)))
    images = cfg.train_dataloader.batch_size * num_processes
    iters = shortened_iters(candidates, images, dataset_size, prune_ratio, below)
    set_iters(cfg, iters)
    cfg.train_dataloader.sampler = dict(
        type='InfoBatchSampler', prune_ratio=prune_ratio, percentile=percentile
    )
    hook = dict(type='InfoBatchHook', full_iters=candidates)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def _set_type(cfg: Config, prefix: str) -> None:
    """Names the segmentor of ours that goes by the plain one's name with a prefix."""
    name = type_name(cfg.model.type)
    if name not in ('EncoderDecoder', 'CascadeEncoderDecoder'):
        raise ValueError(
            f'model.type={cfg.model.type!r}: the methods that PFB is compared with are made for '
            'EncoderDecoder and CascadeEncoderDecoder'
        )
    cfg.model.type = f'mmseg.{prefix}{name}'
    add_import(cfg)


def _hooks(cfg: Config, name: str) -> list[dict]:
    return [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook.get('type')) == name]
