"""ScoreSamplerHook: carries weights to the model and scores back to the sampler."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor

from ..core.checks import check_integer, check_keys
from ..hooks.model import unwrapped
from .image_loss import ImageLossMixin
from .score_sampler import ScoreSampler


@HOOKS.register_module()
class ScoreSamplerHook(Hook):
    """Gives a ScoreSampler the loss of each image that was trained on, gathered over all processes.

    Each interval the log gets ``sampling/kept`` (images trained on) and ``sampling/candidates``
    (those that they were chosen from), since the last entry and over all processes. The scores and
    the position in the data go into the checkpoints.

    A subclass may score images by something else than the loss, see :meth:`begin_step` and
    :meth:`scores`.

    Args:
        full_iters: in an iteration-based run, iterations of the run on full data that this one
            replaces. An epoch that is pruned takes fewer iterations, so ``max_iters`` and the
            learning-rate schedule have to be shortened; the sampler's schedule counts in the epochs
            of the long run. None: ``max_iters``.
        interval: iterations between two entries in the log; None is LoggerHook's.

    Attributes:
        name: of the entries in the log and in checkpoints.
        sampler_type: what it can drive.

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model or the sampler is another, or the sampler is for the other kind of loop.
    """

    priority = 'NORMAL'
    name = 'sampling'
    sampler_type: type = ScoreSampler
    example_sampler = 'OrderDPSampler'  # to name in a config; the type above may be abstract

    def __init__(
        self, full_iters: int | None = None, interval: int | None = None, **unknown: Any
    ) -> None:
        check_keys(type(self).__name__, unknown, ('full_iters', 'interval'))
        for option, value in (('full_iters', full_iters), ('interval', interval)):
            if value is not None:
                check_integer(option, value, low=1)
        self.full_iters = full_iters
        self.interval = interval

    def before_train(self, runner) -> None:
        """Refuse what cannot work; say how the samples are chosen."""
        self._model = unwrapped(runner.model)
        self._sampler = runner.train_dataloader.sampler
        for found, wanted, place in (
            (self._model, ImageLossMixin, "model.type='ImageLossEncoderDecoder'"),
            (
                self._sampler,
                self.sampler_type,
                f"train_dataloader.sampler.type='{self.example_sampler}'",
            ),
        ):
            if not isinstance(found, wanted):
                raise ValueError(
                    f'{type(self).__name__} needs {wanted.__name__}, got {type(found).__name__}; '
                    f'set {place}, or remove the hook'
                )
        self._check_loop(runner.train_loop)
        if self._sampler.by_epoch:
            epochs = runner.max_epochs
            schedule = f'the schedule is {epochs} epochs of changing length'
        else:
            full_iters = self.full_iters or runner.max_iters
            images = runner.train_dataloader.batch_size * get_world_size()
            epochs = full_iters * images / self._sampler.size
            schedule = (
                f'the schedule is {runner.max_iters} iterations for the candidates of {full_iters} '
                f'({epochs:.1f} epochs)'
            )
        self._sampler.num_epochs = epochs
        if self.interval is None:
            loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self._interval = loggers[0].interval if loggers else 50
        else:
            self._interval = self.interval
        self._kept = 0
        self._logged = self._sampler.candidates
        print_log(f'{self.describe()}; {schedule}.', logger='current')

    def describe(self) -> str:
        """How the samples are chosen, in words, for the log."""
        return str(self._sampler)

    def begin_step(self, weights: Tensor) -> None:
        """Hand the model the weights (N,) of this process's images in the step to come."""
        self._model.weigh_images(weights)

    def scores(self) -> Tensor:
        """(N,) scores of this process's images in the step that has ended."""
        self._model.weigh_images(None)
        return self._model.image_losses

    def before_train_epoch(self, runner) -> None:
        self._sampler.set_epoch(runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        taken = self._sampler.take(len(data_batch['inputs']))
        self._indices = taken.indices
        self._kept += taken.indices.numel()
        self.begin_step(taken.weights[:, get_rank()])

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        scores = torch.stack(all_gather(self.scores()), dim=1)
        self._sampler.update(self._indices.flatten(), scores.flatten())
        if self.every_n_train_iters(runner, self._interval):
            self._log(runner, runner.iter + 1)

    def after_train_epoch(self, runner) -> None:
        if self._kept:
            self._log(runner, runner.iter)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint[self.name] = self._sampler.state_dict()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume or self.name not in checkpoint:
            return
        loop, loader = runner.train_loop, runner.train_dataloader
        # OpenMMLab's loop loads all batches before the checkpoint again and throws them away.
        discards = isinstance(loop, IterBasedTrainLoop) and not hasattr(
            loop, 'fast_forward_on_resume'
        )
        num_iters = checkpoint['meta']['iter'] if discards else 0
        loader.sampler.load_state_dict(checkpoint[self.name], num_iters * loader.batch_size)

    def _check_loop(self, loop: Any) -> None:
        by_epoch = self._sampler.by_epoch
        kind = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
        if not isinstance(loop, kind):
            raise ValueError(
                f'train_dataloader.sampler.by_epoch={by_epoch} is for {kind.__name__}, got '
                f'{type(loop).__name__}; set it to {not by_epoch}'
            )

    def _log(self, runner, step: int) -> None:
        candidates = self._sampler.candidates
        counts = {
            f'{self.name}/kept': self._kept,
            f'{self.name}/candidates': candidates - self._logged,
        }
        runner.visualizer.add_scalars(counts, step=step)
        self._kept, self._logged = 0, candidates
