"""Checks before the first iteration: what a run with PFBHook is refused for or warned of."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence, Sized
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint
from torch.utils.data import DataLoader

from ..compat import find_distributions, why_no_resume
from ..core import AdaptiveDensityEstimator, KeepQuota


def check_only_one(hooks: Sequence[Hook], hook: Hook) -> None:
    """Refuse a second hook of one kind, which would count everything twice."""
    num = sum(isinstance(other, type(hook)) for other in hooks)
    if num > 1:
        raise ValueError(f'custom_hooks has {num} of {type(hook).__name__}: expected one')


def check_can_resume(work_dir: str | os.PathLike, load_from: str | None) -> None:
    """Refuse to resume where MMEngine would fail to, before it does; ``load_from``: see Runner."""
    checkpoint = load_from or find_latest_checkpoint(str(work_dir))
    if checkpoint is None:
        return
    if not checkpoint:
        raise RuntimeError(
            f'{Path(work_dir) / "last_checkpoint"} is empty: the run was killed while it was '
            'written; resume with --resume --cfg-options load_from=CHECKPOINT, or delete the file '
            'to start afresh'
        )
    reason = why_no_resume(find_distributions(), torch.__version__)
    if reason:
        raise RuntimeError(reason)


def check_loader(loader: DataLoader, quota: KeepQuota) -> None:
    """Refuse a training data loader without images, or with so few that all would be kept."""
    if isinstance(loader.dataset, Sized) and len(loader.dataset) == 0:
        raise ValueError(
            'the training data set is empty; check data_root, data_prefix and ann_file of '
            'train_dataloader.dataset'
        )
    size = full_batch(loader)
    if size is None or quota.prune_ratio == 0 or quota.mean(size) < size:
        return
    sentence = (
        f'with {size} image(s) per process and at least {quota.min_keep} to be kept, nothing can '
        f'ever be pruned at prune_ratio={quota.prune_ratio}; raise train_dataloader.batch_size'
    )
    if quota.min_keep == 2:
        sentence += (
            '. Two images are kept because a head normalises single pixels with BatchNorm; with '
            'another norm_cfg, min_keep=1 may be set'
        )
    raise ValueError(sentence)


def full_batch(loader: DataLoader) -> int | None:
    """Images per process in a full batch, before PFBBatchSampler leaves any out; None if that is
    not known."""
    return getattr(loader.batch_sampler, 'batch_size', loader.batch_size)


def warn_of_what_comes_later(
    estimator: AdaptiveDensityEstimator | None, iters: int, images: int
) -> None:
    """Warn of what would otherwise be seen at the end of a long run only, where batches are pruned
    in ``iters`` iterations of ``images`` in all processes; 0 if not known."""
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


def describe_quota(quota: KeepQuota, batch_size: int | None, num_ranks: int) -> str:
    """How many images each process keeps, and the actual ratio where min_keep changes it."""
    each = f'Each of {num_ranks} process(es) keeps'
    if batch_size is None:
        return f'{each} at least {quota.min_keep} image(s).'
    mean = quota.mean(batch_size)
    ratio = float(1 - mean / batch_size)
    return (
        f'{each} {float(mean):g} of {batch_size} images on average, at least {quota.min_keep}'
        + (f', which makes it {ratio:.0%} that are blocked.' if ratio < quota.prune_ratio else '.')
    )


def _warn(sentence: str) -> None:
    print_log(sentence, logger='current', level=logging.WARNING)
