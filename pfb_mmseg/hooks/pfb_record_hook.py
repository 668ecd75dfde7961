"""PFBRecordHook: what became of each image, over all processes."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS

from ..core import Selection
from ..core.ranks import Ranks
from ..report import RECORD_NAME, SelectionRecord, class_counts, image_name
from ..report.files import write_atomically
from .model import find_filter
from .preflight import check_only_one

# Iterations between two collections of the record: what travels then is bounded by the images of
# so many batches, and so is what a checkpoint that nobody announced may lack.
_COLLECT_EVERY = 50


@HOOKS.register_module()
class PFBRecordHook(Hook):
    """Keeps a :class:`SelectionRecord` of a run with :class:`PFBMixin`; PFBHook registers it.

    The record says what became of each image, merged over all processes of the model's
    ``process_group``: that of the first process, where there are several groups. It is written with
    every checkpoint and into it, and at the end of the run. Its file is
    ``<work_dir>/pfb_record.npz``. In a checkpoint that is not saved by CheckpointHook, the other
    processes' last iterations, 49 at most, are missing.

    Attributes:
        record: of all processes up to the last collection, in the first one; empty in the others.

    Raises:
        ValueError: before the first iteration, the model has no ``pfb``, or there are two hooks.
    """

    # After PFBLogHook (54), whose clock must not count what is written down here, and before
    # CheckpointHook (80): the processes hand in their parts before it saves.
    priority = 56

    def __init__(self) -> None:
        self.record = SelectionRecord()
        self._fresh = SelectionRecord()  # of this process, since the last collection
        self._ranks = Ranks()  # the model's, once there is one to be trained
        self._classes: list[str] = []
        self._num_iters = 0  # of the run; none where it only validates

    def before_train(self, runner) -> None:
        self._pfb = find_filter(runner.model)
        check_only_one(runner.hooks, self)
        self._ranks = self._pfb.pruner.ranks
        self._classes = _classes(runner.train_dataloader)
        self._num_iters = runner.max_iters
        self._start_afresh()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        selection = self._pfb.selection
        if selection is None or selection.num_kept == selection.num_candidates:
            self._fresh.add_full(runner.iter, len(data_batch['inputs']))
        else:
            self._write_down(runner.iter, data_batch['data_samples'], selection)
        if self.every_n_train_iters(runner, _COLLECT_EVERY) or _checkpoint_due(runner):
            self._collect()

    def before_val_epoch(self, runner) -> None:
        """A best checkpoint may be saved behind it."""
        self._collect()

    def after_train_epoch(self, runner) -> None:
        """A checkpoint may be saved behind it."""
        self._collect()

    def after_train(self, runner) -> None:
        self._collect()
        if is_main_process():
            self.record.save(Path(runner.work_dir) / RECORD_NAME)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Write the record, which the first process holds, beside the checkpoint and into it."""
        if not is_main_process():  # FSDPStrategy has every process write a checkpoint
            return
        self.record.merge(self._fresh)
        self._start_afresh()
        record = self.record.to_bytes()
        write_atomically(Path(runner.work_dir) / RECORD_NAME, record)
        as_tensor = torch.frombuffer(bytearray(record), dtype=torch.uint8)
        checkpoint.setdefault('pfb', {})['record'] = as_tensor

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume or 'record' not in checkpoint.get('pfb', {}):
            return
        if find_filter(runner.model).pruner.ranks.rank == 0:  # once: the parts are added up
            # MMEngine puts whatever a checkpoint holds on the device; the record lives on the host.
            record = checkpoint['pfb']['record'].cpu().numpy()
            self.record = SelectionRecord.from_bytes(record.tobytes())

    def _write_down(self, iteration: int, data_samples: list, selection: Selection) -> None:
        """Note which images were kept, and their scores. Waits for the device."""
        paths = [
            image_name(getattr(sample, 'img_path', None), getattr(sample, 'sample_idx', None))
            for sample in data_samples
        ]
        found, counted = selection.on_host, class_counts(data_samples, len(self._classes))
        self._fresh.add(
            iteration,
            paths,
            found.kept.numpy(),
            None if found.score is None else found.score.numpy(),
            None if counted is None else counted.counts.cpu().numpy(),
            found.score_name,
            None if counted is None else counted.unit,
        )

    def _collect(self) -> None:
        """Add what all processes saw since the last time to the first one's record.

        Some 20 bytes an image travel, to that process alone, and one number to each to know the
        largest part by.
        """
        mine = zlib.compress(pickle.dumps(self._fresh), level=1)
        for part in self._ranks.collect(mine):
            self.record.merge(pickle.loads(zlib.decompress(part)))
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._fresh = SelectionRecord(self._classes, self._num_iters)


def _classes(dataloader: Any) -> list[str]:
    """Names of the data set's classes; none if it does not tell."""
    metainfo = getattr(getattr(dataloader, 'dataset', None), 'metainfo', {})
    return [str(name) for name in metainfo.get('classes') or ()]


def _checkpoint_due(runner) -> bool:
    """Whether CheckpointHook, which comes later, saves in this iteration.

    Its own condition over again, since it does not tell beforehand. To collect when it saves would
    be too late: MMEngine's Runner saves in the first process alone, ``before_save_checkpoint`` is
    never called in the others, and a collective needs them all.
    """
    return any(
        isinstance(hook, CheckpointHook)
        and not hook.by_epoch
        and (
            hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
            or (hook.save_last and hook.is_last_train_iter(runner))
        )
        for hook in runner.hooks
    )
