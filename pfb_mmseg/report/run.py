"""What a run left in its work dir, whether it is finished, interrupted or still going."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from ..core.estimator import read_estimate
from .counts import RECORD_NAME, SelectionRecord
from .scalars import read_scalars

_ESTIMATOR = 'pfb.pruner.criterion.estimator.'


class RunFiles:
    """Reads a work dir.

    Args:
        work_dir: of a run with PFBHook.

    Attributes:
        train, val: lists of dict, the logged scalars, see :func:`read_scalars`.
        config: as the run was started last, or None.
        record: SelectionRecord; None before the first checkpoint.
        checkpoint: path of the newest that can be read, or None.
        epoch: how many it was written after, in a run that counts them; else None.
        estimator: dict of the density estimate in it, empty if there is none.
        versions: dict of str, with which the run was made; empty before the first checkpoint.
        notes: list of str: what is missing, and why.

    Raises:
        FileNotFoundError: there is no such folder, or nothing was logged there.
    """

    def __init__(self, work_dir: str | os.PathLike) -> None:
        self.work_dir = Path(work_dir)
        self.notes: list[str] = []
        self.train, self.val = read_scalars(work_dir)
        self.config = self._read_config()
        self.checkpoint, state = self._read_checkpoint()
        self.epoch = None if self.max_epochs is None else state.get('meta', {}).get('epoch')
        weights, pfb = state.get('state_dict', {}), state.get('pfb', {})
        self.estimator = read_estimate(weights, _ESTIMATOR) or {}
        self.versions = pfb.get('versions', {})
        self.record = self._read_record(pfb)

    @property
    def name(self) -> str:
        return self.work_dir.resolve().name

    @property
    def iteration(self) -> int:
        """The last one that was logged."""
        return max((entry['step'] for entry in [*self.train, *self.val]), default=0)

    @property
    def max_iters(self) -> int | None:
        """Length of the run; None where the config does not tell, as in runs by epoch."""
        return self._train_cfg.get('max_iters')

    @property
    def max_epochs(self) -> int | None:
        """Length of a run by epoch."""
        return self._train_cfg.get('max_epochs')

    @property
    def _train_cfg(self) -> Mapping[str, Any]:
        return {} if self.config is None else self.config.get('train_cfg', {})

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Iterations and values of a scalar, where it was logged."""
        entries = [entry for entry in self.train if key in entry]
        return (
            np.array([entry['step'] for entry in entries]),
            np.array([entry[key] for entry in entries]),
        )

    def _read_config(self) -> Config | None:
        files = sorted(self.work_dir.glob('*/vis_data/config.py')) or sorted(
            self.work_dir.glob('*.py')
        )
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
        if not files:
            self.notes.append('No checkpoint has been written yet: centroids are not shown.')
        return None, {}

    def _read_record(self, pfb: dict) -> SelectionRecord | None:
        file = self.work_dir / RECORD_NAME
        if file.is_file():
            return SelectionRecord.load(file)
        if 'record' in pfb:
            return SelectionRecord.from_bytes(pfb['record'].numpy().tobytes())
        self.notes.append(
            f'There is no {RECORD_NAME} yet; it is written with the first checkpoint. Until then '
            'nothing is known of single images and classes.'
        )
        return None


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint of MMEngine without running any code that may lie in it.

    Raises:
        UnpicklingError: it holds more than tensors, plain data and MMEngine's log.
    """
    # MMEngine's checkpoints hold its log too; torch knows how to let that through from 2.6 on.
    multiarray = getattr(np, '_core', None) or np.core
    multiarray = multiarray.multiarray
    number_types = [type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', 'bool')]
    harmless = [
        HistoryBuffer, (_log_method, 'builtins.getattr'), slice,
        np.ndarray, np.dtype, *number_types, multiarray._reconstruct, multiarray.scalar,
    ]  # fmt: skip
    allowed = nullcontext()
    if torch.__version__ >= '2.6':
        allowed = torch.serialization.safe_globals(harmless)
    with allowed:
        return torch.load(path, map_location='cpu', weights_only=True)


def _log_method(owner: type, name: str) -> object:
    """In place of getattr, by which MMEngine's log names its methods and which opens any door."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'a checkpoint has no use for {name!r} of {owner!r}')
    return getattr(owner, name)
