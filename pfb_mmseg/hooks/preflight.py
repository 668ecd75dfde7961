"""Checks before the first iteration: what a run with PFBHook is refused for or warned of."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence, Sized
from pathlib import Path

import torch
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint
from torch.utils.data import DataLoader

from ..compat import find_distributions, why_no_resume
from ..core import AdaptiveDensityEstimator, KeepQuota


def check_only_one(hooks: Sequence[Hook], hook: Hook) -> None:
    """Refuse a second hook of one kind, which would count everything twice.

    Raises:
        ValueError: there is one.
    """
    same = [other for other in hooks if isinstance(other, type(hook))]
    if len(same) > 1:
        name = type(hook).__name__
        raise ValueError(f'custom_hooks has {len(same)} of {name}: expected one')


def check_can_resume(work_dir: str | os.PathLike, load_from: str | None) -> None:
    """Refuse to resume where MMEngine would fail to, before it does.

    Args:
        work_dir: of the run.
        load_from: checkpoint to resume from; None: the latest in the work dir, if there is one.

    Raises:
        RuntimeError: the note that names the latest checkpoint is empty, or the installed mmengine
            cannot load a checkpoint with the installed torch.
    """
    checkpoint = load_from or find_latest_checkpoint(str(work_dir))
    if checkpoint is None:
        return
    if not checkpoint:
        note = Path(work_dir) / 'last_checkpoint'
        saved = sorted(Path(work_dir).glob('*.pth'), key=lambda path: path.stat().st_mtime)
        remedy = (
            f'resume with --resume --cfg-options load_from={saved[-1]}'
            if saved
            else 'delete it to start afresh'
        )
        raise RuntimeError(f'{note} is empty: the run was killed while it was written; {remedy}')
    reason = why_no_resume(find_distributions(), torch.__version__)
    if reason:
        raise RuntimeError(reason)


def check_loader(loader: DataLoader, quota: KeepQuota) -> None:
    """Refuse a training data loader without images, or with so few that all would be kept.

    Raises:
        ValueError: the data set is empty, there is no batch, or one is too small to prune.
    """
    if isinstance(loader.dataset, Sized) and len(loader.dataset) == 0:
        raise ValueError(
            'the training data set is empty; check data_root, data_prefix and ann_file of '
            'train_dataloader.dataset'
        )
    if loader.drop_last and isinstance(loader.sampler, DefaultSampler) and len(loader) == 0:
        raise ValueError(
            f'train_dataloader has no batch: {len(loader.sampler)} image(s) per process, '
            f'batch_size={loader.batch_size}, drop_last=True; lower batch_size or leave '
            'drop_last out'
        )
    size = full_batch(loader)
    if size is None or quota.prune_ratio == 0 or quota.mean(size) < size:
        return
    raise ValueError(
        f'with {size} image(s) per process and at least {quota.min_keep} to be kept, '
        f'nothing can ever be pruned at prune_ratio={quota.prune_ratio}; raise '
        'train_dataloader.batch_size'
        + (
            '. Two images are kept because a head normalises single pixels with BatchNorm; '
            'with another norm_cfg, min_keep=1 may be set'
            if quota.min_keep == 2
            else ''
        )
    )


def full_batch(loader: DataLoader) -> int | None:
    """Images per process in a full batch, before PFBBatchSampler leaves any out; None if that is
    not known."""
    return getattr(loader.batch_sampler, 'batch_size', loader.batch_size)


def warn_of_what_comes_later(
    estimator: AdaptiveDensityEstimator | None, iters: int, images: int
) -> None:
    """Warn of what would otherwise be seen at the end of a long run only.

    Args:
        estimator: what decides, if it is an estimate of the density.
        iters: iterations in which batches are to be pruned.
        images: of all processes in an iteration; 0 if not known.
    """
    unready = estimator is not None and not estimator.ready
    if images and unready and estimator.num_centroids > images * iters:
        _warn(
            f'Nothing will be pruned: seeding {estimator.num_centroids} centroids takes '
            f'as many images, and the {iters} iterations from begin to end have '
            f"{images * iters}. Set a smaller num_centroids, criterion=dict(type='rare', "
            'estimator=dict(num_centroids=...)), or train longer.'
        )
    reason = why_no_resume(find_distributions(), torch.__version__)
    if reason:
        _warn(f'If this run is interrupted, it cannot be resumed as things are. {reason}')


def warn_of_strategy(strategy: object | None) -> None:
    """Warn of a strategy of FlexibleRunner that calls no hook when it saves a checkpoint.

    Args:
        strategy: of the runner; None if it has none.
    """
    if any(base.__name__ == 'DeepSpeedStrategy' for base in type(strategy).__mro__):
        _warn(
            'DeepSpeedStrategy neither gives its checkpoints to hooks nor asks them for their '
            'state: if this run is resumed, weights, schedule and density estimate go on, but the '
            'record of kept images and the clock start anew. Train with FSDPStrategy if you need '
            'the record of a resumed run.'
        )


def describe_quota(quota: KeepQuota, batch_size: int | None, num_ranks: int) -> str:
    """How many images each process keeps, and the actual ratio where min_keep changes it."""
    least = f'at least {quota.min_keep} image(s) are kept'
    if batch_size is None:
        return f'In each of {num_ranks} process(es) {least}.'
    mean = quota.mean(batch_size)
    low, high = math.floor(mean), math.ceil(mean)
    number = f'{low}' if low == high else f'{low} or {high}, on average {float(mean):g},'
    sentence = f'Each of {num_ranks} process(es) keeps {number} of its {batch_size}; {least}'
    ratio = float(1 - mean / batch_size)
    if ratio < quota.prune_ratio:
        sentence += f', which makes it {ratio:.0%} that are blocked'
    return f'{sentence}.'


def _warn(sentence: str) -> None:
    print_log(sentence, logger='current', level=logging.WARNING)
