"""Each method as a change to a config: same model, data and schedule, another way to train."""

from __future__ import annotations

import copy
import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from ..blocking import least_trainable
from ..convert.apply import add_import, apply_pfb, remove_pfb, type_name
from ..core import KeepQuota
from ..core.checks import check_choice, check_integer, check_number
from . import fixed_part, infobatch, orderdp, seta
from .lengths import Share, shortened_iters

# PFB's criterion, and the weight with which the early exit's loss teaches the shallow part; None:
# that of the config if it has this criterion, else the criterion's own.
CRITERIA = {
    'hard': ('hard', None),
    'hard_only': ('hard', 0.0),
    'rare': ('rare', 0.0),
    'rare_taught': ('rare', 1.0),
    'random': ('random', 0.0),
    'common': ('common', 0.0),
    'loss_topk': ('loss_topk', 0.0),
    'divbs': ('divbs', 0.0),
}
# Percentile of the threshold, and the share of the samples that lies below it.
INFOBATCH = {'infobatch': (95, 0.95), 'infobatch_mean': (None, 0.5)}
PRUNING_METHODS = (*CRITERIA, 'pfb', 'two_stage', 'random_once', *INFOBATCH, 'orderdp', 'seta')
# They have no ratio, and are as long as full data.
WHOLE_METHODS = ('full', 'rcs', 'ohem')
METHODS = (*WHOLE_METHODS, 'short', 'small', *PRUNING_METHODS)

# MMSegmentation's OHEM keeps at least 100,000 pixels of a crop of 512x1024 in its own configs.
OHEM_THRESHOLD, OHEM_SHARE = 0.7, 100_000 / (512 * 1024)
# Of the pixels of each class and image, a file for each data set.
COUNTS_FOLDER = 'work_dirs/class_counts'
# What is before the names of our models, to find them whatever the config's scope is.
_SCOPES = {'EncoderDecoder': 'mmseg.', 'CascadeEncoderDecoder': 'mmseg.', 'ImageClassifier': ''}

DESCRIPTIONS = {
    'full': 'all images',
    'short': 'all images, schedule compressed to the time that a pruned run took',
    'small': 'all images in batches of the size that is kept: random choice without its loading',
    'hard': 'PFB as recommended: highest losses of an early exit, which teaches on all images',
    'hard_only': 'PFB by the highest losses of an early exit, without its teaching',
    'rare': 'PFB as in the paper: the images of lowest density',
    'rare_taught': 'rare, and an early exit teaches the shallow part on all images',
    'pfb': "PFB with the config's own criterion and options",
    'two_stage': 'hard, behind a loader that leaves out images that were easy when last looked at',
    'random': 'PFB with a new random part of each batch',
    'random_once': 'a random part of the data, drawn once before training',
    'common': "PFB with the paper's criterion reversed: the images of highest density",
    'loss_topk': 'the highest losses of each batch, after a forward pass of all of it',
    'divbs': 'DivBS: diverse last-layer gradients, after a forward pass of all of the batch',
    'infobatch': 'InfoBatch†: threshold at the 95th percentile, the actual ratio as the others',
    'infobatch_mean': 'InfoBatch*: threshold at the mean, about half the ratio',
    'orderdp': 'OrderDP: of a random pool the highest last-seen losses, shares to make the ratio',
    'seta': 'SeTa: a window of groups by loss slides from easy to hard; about the ratio',
    'rcs': 'all images by rare class sampling (DAFormer): a class is drawn, then an image of it',
    'ohem': 'all images, with the loss of the hardest pixels only (OHEM)',
}


def apply_method(
    cfg: Config, method: str, prune_ratio: float | None = None, num_processes: int = 1
) -> None:
    """Changes a config in place so that it trains with a method.

    The config may have PFB or not; its options of PFB and its PFBHook serve the methods that prune
    batches, and are taken away for the others. ``'short'`` and ``'small'`` are full data here, the
    latter in smaller batches and at the same learning rate; their length follows from measured
    times and is set with :func:`set_iters`. The schedule of the methods that choose what is loaded
    (InfoBatch, OrderDP, SeTa, a random part drawn once) is shortened to the expected number of
    iterations in which they get through the candidates of the run on full data; in a loop that
    counts epochs, the epochs themselves are shorter.

    OrderDP at ratio p has a pool and a share whose product is 1 - p, see
    :func:`.orderdp.pool_and_share`; SeTa a window, and a random part for the rest, that leave out p
    if its groups are of one size, see :func:`.seta.ratio_and_window`. ``'ohem'`` keeps at least the
    part of a crop's pixels that MMSegmentation's configs do, a fifth; ``'rcs'`` keeps the counted
    pixels of each class and image in ``work_dirs/class_counts/`` for the next run.

    Args:
        cfg: Config of a segmentor or a classifier.
        method: one of ``METHODS``.
        prune_ratio: share that is pruned, in [0, 1), or by which the batches of ``'small'`` are
            smaller; None for the others.
        num_processes: of the run, each of which loads ``train_dataloader.batch_size`` images.

    Raises:
        TypeError, ValueError: an argument is outside its range, or the config does not fit.
    """
    check_choice('method', method, METHODS)
    if method in ('full', 'short', 'rcs', 'ohem'):
        remove_pfb(cfg)
        if method == 'rcs':
            _sample_rare_classes(cfg)
        elif method == 'ohem':
            _mine_hard_pixels(cfg)
        return
    check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
    if method == 'small':
        min_keep = (cfg.model.get('pfb') or {}).get('min_keep')
        remove_pfb(cfg)
        _shrink_batches(cfg, prune_ratio, min_keep)
    elif method == 'pfb':
        apply_pfb(cfg, prune_ratio)
    elif method in CRITERIA:
        apply_pfb(cfg, prune_ratio)
        _choose_criterion(cfg, *CRITERIA[method])
    elif method == 'two_stage':
        # Each of the stages leaves out the same share of what it is given.
        apply_pfb(cfg, prune_ratio, 1 - math.sqrt(1 - prune_ratio))
        _choose_criterion(cfg, *CRITERIA['hard'])
    else:
        remove_pfb(cfg)
        _choose_by_score(cfg, method, prune_ratio, num_processes)


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
    for hook in (*_hooks(cfg, 'InfoBatchHook'), *_hooks(cfg, 'ScoreSamplerHook')):
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


def _choose_criterion(cfg: Config, criterion: str, exit_loss_weight: float | None) -> None:
    """Names the criterion, with the options that the config has of it, and the exit's weight."""
    pfb = cfg.model.pfb
    found = pfb.get('criterion', 'rare')
    found = found if isinstance(found, dict) else dict(type=found)
    density = ('rare', 'common')  # estimated in the same way, with the same options
    if criterion == found['type'] or (criterion in density and found['type'] in density):
        pfb.criterion = {**found, 'type': criterion}
    else:
        pfb.criterion = dict(type=criterion)
    if exit_loss_weight is not None:
        pfb.exit_loss_weight = exit_loss_weight
    elif criterion != found['type']:
        pfb.pop('exit_loss_weight', None)


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


def _choose_by_score(cfg: Config, method: str, prune_ratio: float, num_processes: int) -> None:
    """Gives the loader one of our samplers, and the model and the hooks what that needs."""
    by_epoch = _by_epoch(cfg)
    # The scope is MMSegmentation's: the data set is only counted, in this process.
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    size = len(DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset)))
    images = cfg.train_dataloader.batch_size * num_processes
    num_epochs = cfg.train_cfg.max_epochs if by_epoch else full_iters(cfg) * images / size
    sampler, share = _SAMPLERS[method](prune_ratio, size, num_epochs)
    infobatch = method in INFOBATCH
    hook = dict(type='InfoBatchHook' if infobatch else 'ScoreSamplerHook')
    if by_epoch:
        sampler['by_epoch'] = True
    else:
        candidates = full_iters(cfg)
        set_iters(cfg, shortened_iters(candidates, images, size, share))
        hook['full_iters'] = candidates
    cfg.train_dataloader.sampler = sampler
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    _set_type(cfg)


def _infobatch(
    percentile: float | None, below: float, prune_ratio: float, size: int, num_epochs: float
) -> tuple[dict, Share]:
    sampler = dict(type='InfoBatchSampler', prune_ratio=prune_ratio, percentile=percentile)
    return sampler, infobatch.expected_share(prune_ratio, below)


def _random_once(prune_ratio: float, size: int, num_epochs: float) -> tuple[dict, Share]:
    kept = fixed_part.num_kept(size, prune_ratio) / size
    sampler = dict(type='FixedPartSampler', prune_ratio=prune_ratio)
    return sampler, lambda epoch, num_epochs: kept


def _orderdp(prune_ratio: float, size: int, num_epochs: float) -> tuple[dict, Share]:
    pool, share = orderdp.pool_and_share(prune_ratio)
    kept = orderdp.num_kept(size, pool, share) / size
    return dict(type='OrderDPSampler', pool=pool, share=share), lambda epoch, num_epochs: kept


def _seta(prune_ratio: float, size: int, num_epochs: float) -> tuple[dict, Share]:
    ratio, window = seta.ratio_and_window(prune_ratio, num_epochs)
    sampler = dict(type='SeTaSampler', prune_ratio=ratio, num_groups=seta.NUM_GROUPS, window=window)
    return sampler, seta.expected_share(ratio, seta.NUM_GROUPS, window)


# Method -> (prune ratio, size of the data set, epochs of the run) -> sampler, and what it keeps.
_SAMPLERS = {
    **{name: partial(_infobatch, *options) for name, options in INFOBATCH.items()},
    'random_once': _random_once,
    'orderdp': _orderdp,
    'seta': _seta,
}


def _sample_rare_classes(cfg: Config) -> None:
    dataset = repr(cfg.train_dataloader.dataset)
    digest = hashlib.sha256(dataset.encode()).hexdigest()[:16]
    sampler = dict(type='RareClassSampler', counts=str(Path(COUNTS_FOLDER, f'{digest}.npz')))
    if _by_epoch(cfg):
        sampler['by_epoch'] = True
    cfg.train_dataloader.sampler = sampler
    add_import(cfg)


def _mine_hard_pixels(cfg: Config) -> None:
    """Gives the decode head, all stages of a cascade, MMSegmentation's pixel sampler."""
    heads = cfg.model.decode_head
    pixels = _crop_pixels(cfg)
    for head in heads if isinstance(heads, (list, tuple)) else [heads]:
        head['sampler'] = dict(
            type='OHEMPixelSampler',
            thresh=OHEM_THRESHOLD,
            min_kept=max(2, round(OHEM_SHARE * pixels)),
        )


def _crop_pixels(cfg: Config) -> int:
    """Of a training image, as the data preprocessor pads it."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    size = preprocessor.get('size') or cfg.get('crop_size')
    if not size:
        raise ValueError(
            'ohem keeps a share of the pixels of a training image, but neither '
            'model.data_preprocessor.size nor crop_size says how many it has; set one'
        )
    return size[0] * size[1]


def _by_epoch(cfg: Config) -> bool:
    """Whether the loop counts epochs."""
    return 'max_epochs' in (cfg.get('train_cfg') or {})


def _set_type(cfg: Config) -> None:
    """Names the model that tells the loss of each image."""
    name = type_name(cfg.model.type)
    if name not in _SCOPES:
        raise ValueError(
            f'model.type={cfg.model.type!r}: the methods that PFB is compared with are made for '
            f'{", ".join(_SCOPES)}'
        )
    cfg.model.type = f'{_SCOPES[name]}ImageLoss{name}'
    add_import(cfg)


def _hooks(cfg: Config, name: str) -> list[dict]:
    return [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook.get('type')) == name]
