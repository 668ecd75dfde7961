"""InfoBatchHook: carries weights to the model and losses back to the sampler."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop

from ..core.checks import check_integer, check_keys, check_number
from ..hooks.log_entries import LogEntries
from ..hooks.model import unwrapped
from .infobatch_sampler import InfoBatchSampler
from .infobatch_segmentor import InfoBatchMixin


@HOOKS.register_module()
class InfoBatchHook(Hook):
    """Runs InfoBatch for a model with InfoBatchMixin whose loader has an InfoBatchSampler.

    Each entry of the log gets ``infobatch/kept`` (images trained on) and ``infobatch/candidates``
    (these and the pruned ones), since the last entry and over all processes. The scores and the
    position in the data go into the checkpoints.

    Args:
        delta: share of the epochs in which samples may be pruned, in [0, 1] (paper: 0.875). The
            first is never pruned, nor is an epoch that begins after this share of the run.
        full_iters: iterations of the run on full data that this one replaces. An epoch that is
            pruned takes fewer iterations, so ``max_iters`` and the learning-rate schedule have to
            be shortened, see :func:`shortened_iters`; ``delta`` counts in the epochs of the long
            run. None: ``max_iters``.
        interval: iterations between two entries in the log, beside LoggerHook's, see
            :class:`LogEntries`.

    Raises:
        TypeError, ValueError: an argument is outside its range; or, before the first iteration,
            the model, the sampler or the loop is another.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        delta: float = 0.875,
        full_iters: int | None = None,
        interval: int | None = None,
        **unknown: Any,
    ) -> None:
        check_keys('InfoBatchHook', unknown, ('delta', 'full_iters', 'interval'))
        check_number('delta', delta, 0, 1)
        for name, value in (('full_iters', full_iters), ('interval', interval)):
            if value is not None:
                check_integer(name, value, low=1)
        self.delta = delta
        self.full_iters = full_iters
        self._entries = LogEntries('infobatch/', interval)
        self._kept = 0
        self._candidates = 0.0

    def before_train(self, runner) -> None:
        """Refuse what cannot work; say how many epochs are pruned."""
        self._model = unwrapped(runner.model)
        self._sampler = runner.train_dataloader.sampler
        for found, wanted, place in (
            (self._model, InfoBatchMixin, "model = dict(type='InfoBatchEncoderDecoder', ...)"),
            (self._sampler, InfoBatchSampler, "train_dataloader.sampler.type='InfoBatchSampler'"),
            (runner.train_loop, IterBasedTrainLoop, "train_cfg.type='IterBasedTrainLoop'"),
        ):
            if not isinstance(found, wanted):
                raise ValueError(
                    f'InfoBatchHook needs {wanted.__name__}, got {type(found).__name__}; set '
                    f'{place}, or remove the hook'
                )
        full_iters = self.full_iters or runner.max_iters
        images = runner.train_dataloader.batch_size * get_world_size()
        epochs = full_iters * images / len(self._sampler)
        self._sampler.num_pruned_epochs = self.delta * epochs
        threshold = self._sampler.percentile
        print_log(
            f'InfoBatch: {self._sampler.prune_ratio:.0%} of the samples with a loss below '
            f'{"the mean" if threshold is None else f"the {threshold:g}th percentile"} are left '
            f'out of the epochs after the first and before {self.delta:.1%} of {epochs:.1f}; the '
            f'schedule is {runner.max_iters} iterations for the candidates of {full_iters}.',
            logger='current',
        )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        rows = self._sampler.take(len(data_batch['inputs']))
        self._indices = rows[:, :, 0].long()
        self._kept += self._indices.numel()
        self._candidates += float(rows[:, :, 2].sum())
        self._model.weigh_images(rows[:, get_rank(), 1])

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._model.weigh_images(None)
        losses = torch.stack(all_gather(self._model.image_losses), dim=1)
        self._sampler.update(self._indices.flatten(), losses.flatten())
        if self._entries.due(runner, batch_idx):
            counts = {'infobatch/kept': self._kept, 'infobatch/candidates': self._candidates}
            self._entries.add(runner, batch_idx, counts)
            self._kept = 0
            self._candidates = 0.0

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['infobatch'] = self._sampler.state_dict()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume or 'infobatch' not in checkpoint:
            return
        # OpenMMLab's loop loads all batches before the checkpoint again and throws them away.
        discards = not hasattr(runner.train_loop, 'fast_forward_on_resume')
        loader = runner.train_dataloader
        num_iters = checkpoint['meta']['iter'] if discards else 0
        loader.sampler.load_state_dict(checkpoint['infobatch'], num_iters * loader.batch_size)
