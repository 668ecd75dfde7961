"""How often each image was a candidate, how often it was kept, and how common it looked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class SelectionRecord:
    """Counts per image, identified by its path. 16 bytes an image beside the path itself.

    Attributes:
        paths: list of str, in the order in which the images were first seen.
        candidates, kept: (M,) int32, number of blocked steps an image was in, and survived.
        mean_log_density: (M,) float64, natural log, over the steps in which it had a finite one;
            NaN where there was none.
    """

    def __init__(self) -> None:
        self._row: dict[str, int] = {}
        # Columns: candidates, kept, scored; one row an image, grown by doubling.
        self._counts = np.zeros((64, 3), dtype=np.int32)
        self._log_density = np.zeros(64)

    def __len__(self) -> int:
        return len(self._row)

    @property
    def paths(self) -> list[str]:
        return list(self._row)

    @property
    def candidates(self) -> np.ndarray:
        return self._counts[: len(self), 0]

    @property
    def kept(self) -> np.ndarray:
        return self._counts[: len(self), 1]

    @property
    def mean_log_density(self) -> np.ndarray:
        scored = self._counts[: len(self), 2]
        total = self._log_density[: len(self)]
        return np.where(scored > 0, total / np.maximum(scored, 1), np.nan)

    def add(
        self,
        paths: Sequence[str],
        kept: np.ndarray,
        log_density: np.ndarray | None = None,
    ) -> None:
        """Count one batch.

        Args:
            paths: of the N candidates.
            kept: (N,) bool, True for those that stayed.
            log_density: (N,), or None if nothing was scored.
        """
        rows = self._rows(paths)
        np.add.at(self._counts[:, 0], rows, 1)
        np.add.at(self._counts[:, 1], rows[kept], 1)
        if log_density is not None:
            finite = np.isfinite(log_density)
            np.add.at(self._counts[:, 2], rows[finite], 1)
            np.add.at(self._log_density, rows[finite], log_density[finite])

    def merge(self, other: SelectionRecord) -> None:
        """Add another record's counts, of another process for example."""
        rows = self._rows(other.paths)
        self._counts[rows] += other._counts[: len(other)]
        self._log_density[rows] += other._log_density[: len(other)]

    def state_dict(self) -> dict[str, list[str] | np.ndarray]:
        """Everything, as plain data for a file or another process."""
        return {
            'paths': self.paths,
            'counts': self._counts[: len(self)].copy(),
            'log_density': self._log_density[: len(self)].copy(),
        }

    @classmethod
    def from_state_dict(cls, state: dict) -> SelectionRecord:
        """The record that :meth:`state_dict` described."""
        record = cls()
        rows = record._rows(state['paths'])
        record._counts[rows] = np.asarray(state['counts'])
        record._log_density[rows] = np.asarray(state['log_density'])
        return record

    def save(self, path: str | os.PathLike) -> None:
        """Write to an ``.npz`` file; after a crash the old or the new file is there, never half."""
        path = Path(path)
        state = self.state_dict()
        state['paths'] = np.frombuffer('\n'.join(state['paths']).encode(), dtype=np.uint8)
        partial = path.with_name(f'{path.name}.partial')
        with open(partial, 'wb') as file:
            np.savez_compressed(file, **state)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> SelectionRecord:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            state = dict(arrays)
        text = state['paths'].tobytes().decode()
        state['paths'] = text.split('\n') if text else []
        return cls.from_state_dict(state)

    def _rows(self, paths: Sequence[str]) -> np.ndarray:
        rows = np.array([self._row.setdefault(p, len(self._row)) for p in paths], dtype=np.int64)
        missing = len(self._row) - len(self._counts)
        if missing > 0:
            grow = max(missing, len(self._counts))
            self._counts = np.pad(self._counts, ((0, grow), (0, 0)))
            self._log_density = np.pad(self._log_density, (0, grow))
        return rows
