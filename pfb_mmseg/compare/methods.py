"""Each method as a change to a config: same model, data and schedule, another way to train."""

from __future__ import annotations

import copy
import math
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..blocking import least_trainable
from ..convert.apply import add_import, apply_pfb, remove_pfb
from ..core import KeepQuota
from ..core.checks import check_choice, check_number
from .infobatch import shortened_iters
from .lengths import dataset_size, full_iters, set_iters

METHODS = {
    'full': 'all images',
    'short': 'all images, with the schedule shortened to the time that a pruned run took',
    'small': 'all images, in batches of the size that PFB keeps',
    'hard': 'PFB as recommended: highest losses of an early exit, which teaches on all images',
    'hard_only': 'PFB by the highest losses of an early exit, without its teaching',
    'rare': 'PFB as in the paper: the images of lowest density',
    'rare_taught': 'rare, and an early exit teaches the shallow part on all images',
    'pfb': "PFB with the config's own criterion and options",
    'two_stage': 'hard, behind a loader that leaves out images that were easy when last looked at',
    'random': 'PFB with a new random part of each batch',
    'common': "PFB with the paper's criterion reversed: the images of highest density",
    'loss_topk': 'the highest losses of each batch, after a forward pass of all of it',
    'divbs': 'DivBS: diverse last-layer gradients, after a forward pass of all of the batch',
    'infobatch': 'InfoBatch†: threshold at the 95th percentile, the actual ratio as the others',
    'infobatch_mean': 'InfoBatch*: threshold at the mean, about half the ratio',
}
PRUNING_METHODS = tuple(name for name in METHODS if name not in ('full', 'short', 'small'))
# PFB's criterion, and the weight with which the early exit's loss teaches the shallow part; None:
# that of the config if it has this criterion, else the criterion's own.
CRITERIA = {
    'hard': ('hard', None),
    'two_stage': ('hard', None),
    'hard_only': ('hard', 0.0),
    'rare': ('rare', 0.0),
    'rare_taught': ('rare', 1.0),
    'random': ('random', 0.0),
    'common': ('common', 0.0),
    'loss_topk': ('loss_topk', 0.0),
    'divbs': ('divbs', 0.0),
}
# The threshold, a percentile or the mean.
INFOBATCH = {'infobatch': 95, 'infobatch_mean': None}


def apply_method(
    cfg: Config, method: str, prune_ratio: float | None = None, num_processes: int = 1
) -> None:
    """Changes a config in place so that it trains with one of :data:`METHODS`.

    The config may have PFB or not; its options of PFB and its PFBHook serve the methods that prune
    batches, and are taken away for the others. ``'short'`` and ``'small'`` are full data here, the
    latter in smaller batches and at the same learning rate; their length follows from measured
    times. The schedule of InfoBatch is shortened, see :func:`.infobatch.shortened_iters`.

    Args:
        cfg: of a run that counts iterations.
        method: its name.
        prune_ratio: share that is pruned, in [0, 1), or by which the batches of ``'small'`` are
            smaller; None for ``'full'`` and ``'short'``.
        num_processes: each loads ``train_dataloader.batch_size`` images.

    Raises:
        TypeError, ValueError: an argument is outside its range, or the config does not fit.
    """
    check_choice('method', method, METHODS)
    if method not in ('full', 'short'):
        check_number('prune_ratio', prune_ratio, 0, 1, open_high=True)
    if method in CRITERIA or method == 'pfb':
        # Each of two stages leaves out the same share of what it is given.
        skipped = 1 - math.sqrt(1 - prune_ratio) if method == 'two_stage' else 0.0
        apply_pfb(cfg, prune_ratio, skipped)
        if method != 'pfb':
            _choose_criterion(cfg, *CRITERIA[method])
        return
    min_keep = (cfg.model.get('pfb') or {}).get('min_keep')
    remove_pfb(cfg)
    if method == 'small':
        _shrink_batches(cfg, prune_ratio, min_keep)
    elif method in INFOBATCH:
        _use_infobatch(cfg, num_processes, prune_ratio, INFOBATCH[method])


def criterion_of(cfg: Config) -> dict[str, Any]:
    """The options of the criterion in ``cfg.model.pfb``, of which its name is one."""
    found = cfg.model.pfb.criterion
    return dict(found) if isinstance(found, dict) else dict(type=found)


def _choose_criterion(cfg: Config, criterion: str, exit_loss_weight: float | None) -> None:
    """Names the criterion, with the options that the config has of it, and the exit's weight."""
    pfb, found = cfg.model.pfb, criterion_of(cfg)
    density = {'rare', 'common'}  # estimated in the same way, with the same options
    same = criterion == found['type'] or density == {criterion, found['type']}
    pfb.criterion = {**(found if same else {}), 'type': criterion}
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


def _use_infobatch(
    cfg: Config, num_processes: int, prune_ratio: float, percentile: float | None
) -> None:
    candidates, images = full_iters(cfg), cfg.train_dataloader.batch_size * num_processes
    options = dict(prune_ratio=prune_ratio, percentile=percentile)
    set_iters(cfg, shortened_iters(candidates, images, dataset_size(cfg), **options))
    cfg.train_dataloader.sampler = dict(type='InfoBatchSampler', **options)
    hook = dict(type='InfoBatchHook', full_iters=candidates)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    add_import(cfg)
