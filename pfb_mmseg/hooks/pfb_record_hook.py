"""PFBRecordHook: how often each image was kept, over all processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ..core import Selection
from ..core.ranks import Ranks
from ..data.places import UNKNOWN, Places
from ..report import RECORD_NAME, SelectionRecord, class_counts, image_name
from ..report.record import write_atomically
from .model import find_filter
from .preflight import check_only_one
from .saved import part_to_resume, part_to_save

_COLLECT_EVERY = 50  # iterations between two collections of the record


@HOOKS.register_module()
class PFBRecordHook(Hook):
    """Keeps a :class:`SelectionRecord` of a run with :class:`PFBMixin`; PFBHook registers it.

    The record counts how often each sample of the data set was a candidate and was kept, in each
    call of ``loss``, over all processes of the model's ``process_group``; where there are several
    groups, it is that of the first process. It is written to ``<work_dir>/pfb_record.npz`` with
    every checkpoint, into the checkpoint, and at the end of the run. In a checkpoint that is not
    saved by CheckpointHook, the other processes' last iterations, 49 at most, are missing.

    Images that are no samples of the data set, such as pseudo-labelled ones, have no row; only the
    counts of the classes include them.

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

    def before_train(self, runner) -> None:
        self._pfb = find_filter(runner.model)
        check_only_one(runner.hooks, self)
        self._ranks = self._pfb.pruner.ranks
        dataset = runner.train_dataloader.dataset
        classes = getattr(dataset, 'metainfo', {}).get('classes') or ()
        self._classes = [str(name) for name in classes]
        # Before the loader starts its workers, which then tell the place of each sample.
        self._places = Places(dataset)
        self._told = False
        self._fresh = SelectionRecord(self._classes)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for selection in self._pfb.selections:
            if selection.num_kept < selection.num_candidates:
                self._write_down(selection)
        if self.every_n_train_iters(runner, _COLLECT_EVERY) or _checkpoint_due(runner):
            self._collect()

    # A checkpoint may be saved behind each of these.

    def before_val_epoch(self, runner) -> None:
        self._collect()

    def after_train_epoch(self, runner) -> None:
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
        self._fresh = SelectionRecord(self._classes)
        data = self.record.to_bytes()
        write_atomically(Path(runner.work_dir) / RECORD_NAME, data)
        part_to_save(checkpoint)['record'] = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        part = part_to_resume(runner, checkpoint)
        if 'record' in part and find_filter(runner.model).pruner.ranks.rank == 0:
            # In the first process alone, since the parts are added up. MMEngine puts whatever a
            # checkpoint holds on the device.
            self.record = SelectionRecord.from_bytes(part['record'].cpu().numpy().tobytes())

    def _write_down(self, selection: Selection) -> None:
        """Note which images were kept, and their scores. Waits for the device."""
        found, samples = selection.on_host, selection.samples
        places = self._places.find(samples)
        unknown = int((places == UNKNOWN).sum())
        if unknown and not self._told:
            self._told = True
            print_log(
                f'{unknown} of {len(places)} images that loss was given do not tell which samples '
                'of the training data set they are. They have no row in the record, and a '
                'PFBBatchSampler loads them as if they were never scored. If they are of the data '
                'set, let its packing transform pack the index: PackSegInputs(meta_keys=(..., '
                '"img_path", "sample_idx")).',
                logger='current',
                level=logging.WARNING,
            )
        unit, counts = class_counts(samples, len(self._classes)) or (None, None)
        paths = [getattr(sample, 'img_path', None) for sample in samples]
        self._fresh.add(
            [image_name(path, place) for path, place in zip(paths, places.tolist(), strict=True)],
            found.kept.numpy(),
            None if found.score is None else found.score.numpy(),
            counts,
            found.score_name,
            unit,
            places,
        )

    def _collect(self) -> None:
        """Add what all processes saw since the last time to the first one's record.

        About 20 bytes an image are sent, to that process alone.
        """
        for part in self._ranks.collect(self._fresh.to_bytes()):
            self.record.merge(SelectionRecord.from_bytes(part))
        self._fresh = SelectionRecord(self._classes)


def _checkpoint_due(runner) -> bool:
    """Whether CheckpointHook, which comes later, saves in this iteration: its own condition.

    To collect when it saves would be too late: MMEngine's Runner calls ``before_save_checkpoint``
    in the first process alone, and a collective needs them all.
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
