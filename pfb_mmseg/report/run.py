"""What a run left in its work dir, whether it is finished, interrupted or still going."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from .record import RECORD_NAME, SelectionRecord
from .scalars import read_scalars


class RunFiles:
    """Reads a work dir.

    Args:
        work_dir: of a run with PFBHook.

    Attributes:
        train, val: lists of dict, the logged scalars, see :func:`read_scalars`.
        iteration: int, the last one that was logged.
        config: as the run was started last, or None.
        max_iters, max_epochs: int, length of the run, of which one is None.
        record: SelectionRecord; empty before the first checkpoint.
        checkpoint: path of the newest that can be read, or None.
        epoch: int, the last one before the checkpoint; None where there is none.
        versions: dict of str, with which the run was made; empty before the first checkpoint.
        notes: list of str: what is missing, and why.

    Raises:
        FileNotFoundError: there is no such folder, or nothing was logged there.
    """

    def __init__(self, work_dir: str | os.PathLike) -> None:
        self.work_dir = Path(work_dir)
        self.notes: list[str] = []
        self.train, self.val = read_scalars(work_dir)
        self.iteration = max((entry['step'] for entry in [*self.train, *self.val]), default=0)
        self.config = self._read_config()
        length = {} if self.config is None else self.config.get('train_cfg', {})
        self.max_iters, self.max_epochs = length.get('max_iters'), length.get('max_epochs')
        self.checkpoint, state = self._read_checkpoint()
        self.epoch = state.get('meta', {}).get('epoch')
        self.versions = state.get('pfb', {}).get('versions', {})
        self.record = SelectionRecord()
        if (self.work_dir / RECORD_NAME).is_file():
            self.record = SelectionRecord.load(self.work_dir / RECORD_NAME)
        else:
            self.notes.append(
                f'There is no {RECORD_NAME} yet; it is written with the first checkpoint. Until '
                'then nothing is known of single images and classes.'
            )

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Iterations and values of a scalar, where it was logged."""
        found = [(entry['step'], entry[key]) for entry in self.train if key in entry]
        return tuple(np.array(found).reshape(-1, 2).T)

    def _read_config(self) -> Config | None:
        logged = sorted(self.work_dir.glob('*/vis_data/config.py'))
        files = logged or sorted(self.work_dir.glob('*.py'))
        if not files:
            self.notes.append('The run left no config, so its images cannot be found.')
            return None
        return Config.fromfile(files[-1])

    def _read_checkpoint(self) -> tuple[Path | None, dict]:
        files = sorted(self.work_dir.glob('*.pth'), key=lambda f: f.stat().st_mtime, reverse=True)
        for file in files:
            try:
                return file, load_checkpoint(file)
            except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
                reason = str(error).strip().splitlines()[0]
                self.notes.append(f'{file.name} cannot be read: {reason}')
        return None, {}


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint as MMEngine does. It may hold objects: read what you trust."""
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu', logger='silent')
