"""ScoreSamplerHook: carries weights to the model and losses back to the sampler."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from ..core.checks import check_integer
from ..hooks.model import unwrapped
from .image_weights import ImageWeights
from .score_sampler import ScoreSampler


@HOOKS.register_module()
class ScoreSamplerHook(Hook):
    """Gives a ScoreSampler the loss of each image that was trained on, gathered over all processes,
    and the model the weights by which the losses of the sampler's images count.

    The model is any segmentor of MMSegmentation or classifier of MMPretrain whose head has losses
    of single images. The scores and the position in the data go into the checkpoints. BudgetHook
    counts how many images were loaded, and out of how many.

    Args:
        full_iters: iterations of the run on full data that this one replaces. An epoch that is
            pruned takes fewer iterations, so ``max_iters`` and the learning-rate schedule have to
            be shortened; the sampler's schedule counts in the epochs of the long run. None:
            ``max_iters``.

    Raises:
        TypeError, ValueError: the argument is outside its range; or, before the first iteration,
            the sampler is another, the loop counts epochs, or the losses cannot be weighted.
    """

    priority = 'NORMAL'

    def __init__(self, full_iters: int | None = None) -> None:
        if full_iters is not None:
            check_integer('full_iters', full_iters, low=1)
        self.full_iters = full_iters

    def before_train(self, runner) -> None:
        """Refuse what cannot work; say how long the sampler's schedule is."""
        loader = runner.train_dataloader
        self._sampler = loader.sampler
        if not isinstance(self._sampler, ScoreSampler):
            raise ValueError(
                f'ScoreSamplerHook drives a ScoreSampler, got {type(self._sampler).__name__}; set '
                "train_dataloader.sampler.type='OrderDPSampler' or the like, or remove the hook"
            )
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f'{type(self._sampler).__name__} is for IterBasedTrainLoop, got '
                f'{type(runner.train_loop).__name__}; give the length of the run as max_iters'
            )
        self._weights = ImageWeights(unwrapped(runner.model))
        full_iters = self.full_iters or runner.max_iters
        epochs = full_iters * loader.batch_size * get_world_size() / self._sampler.size
        self._sampler.num_epochs = epochs
        print_log(
            f'{type(self._sampler).__name__} chooses what is loaded; the schedule is '
            f'{runner.max_iters} iterations in place of {full_iters} ({epochs:.1f} epochs)',
            'current',
        )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._indices, weights = self._sampler.take(len(data_batch['inputs']))
        self._weights.weights = weights[:, get_rank()]

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._weights.weights = None
        losses = torch.stack(all_gather(self._weights.take_losses()), dim=1)
        self._sampler.update(self._indices.flatten(), losses.flatten())

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['sampling'] = self._sampler.state_dict()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume or 'sampling' not in checkpoint:
            return
        # OpenMMLab's loop loads all batches before the checkpoint again and throws them away.
        discards = not hasattr(runner.train_loop, 'fast_forward_on_resume')
        num_iters = checkpoint['meta']['iter'] if discards else 0
        loader = runner.train_dataloader
        loader.sampler.load_state_dict(checkpoint['sampling'], num_iters * loader.batch_size)
