"""What was kept and what was dropped: per image, and over the run."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import write_atomically

RECORD_NAME = 'pfb_record.npz'  # in the work dir of a run

_MAX_ROWS = 256
_LOWEST, _HIGHEST = -1024, 1024  # range of the histograms in nats, one bin each
_NUM_BINS = _HIGHEST - _LOWEST
_SEPARATOR = '\0'  # the one character that no path holds


class SelectionRecord:
    """Counts per image, identified by its path, and totals over stretches of the run.

    A stretch is ``width`` iterations long: one at first, twice as many whenever there are more
    than 256 stretches, so a record does not grow with the length of the run.

    Attributes:
        paths: list of str, in the order in which the images were first seen.
        candidates, kept: (M,) int32, number of blocked steps an image was in, and survived.
        mean_log_density: (M,) float64, natural log, over the steps in which it had a finite one;
            NaN where there was none.
        classes: list of str, whose pixels are counted.
        width: iterations in a stretch.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = list(classes)
        self.width = 1
        self._row: dict[str, int] = {}
        # Columns: candidates, kept, scored; one row an image, grown by doubling.
        self._counts = np.zeros((64, 3), dtype=np.int32)
        self._log_density = np.zeros(64)
        self._stretches: dict[int, _Stretch] = {}

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

    @property
    def timeline(self) -> Timeline:
        """The totals of every stretch, ascending."""
        stretches = sorted(self._stretches)
        rows = [self._stretches[s].wider(len(self.classes)) for s in stretches]
        shape = {'totals': (4,), 'density': (2, _NUM_BINS), 'pixels': (2, len(self.classes))}
        column = {
            name: np.array([getattr(row, name) for row in rows], np.int64).reshape(len(rows), *size)
            for name, size in shape.items()
        }
        first = np.array(stretches, dtype=np.int64) * self.width
        return Timeline(first, **column)

    def add(
        self,
        iteration: int,
        paths: Sequence[str],
        kept: np.ndarray,
        log_density: np.ndarray | None = None,
        pixels: np.ndarray | None = None,
    ) -> None:
        """Count one blocked batch.

        Args:
            iteration: t, counted from 0.
            paths: of the N candidates.
            kept: (N,) bool, True for those that stayed.
            log_density: (N,), or None if nothing was scored.
            pixels: (N, C) integers, of each of the ``classes``; None if there are no labels.
        """
        rows = self._rows(paths)
        np.add.at(self._counts[:, 0], rows, 1)
        np.add.at(self._counts[:, 1], rows[kept], 1)
        stretch = self._stretch(iteration)
        stretch.totals += [0, len(kept), kept.sum(), 0]
        if log_density is not None:
            finite = np.isfinite(log_density)
            np.add.at(self._counts[:, 2], rows[finite], 1)
            np.add.at(self._log_density, rows[finite], log_density[finite])
            stretch.totals[3] += (~finite).sum()
            bins = np.floor(log_density[finite].clip(_LOWEST, _HIGHEST - 1)).astype(int) - _LOWEST
            np.add.at(stretch.density, (kept[finite].astype(int), bins), 1)
        if pixels is not None:
            stretch.pixels += [pixels[~kept].sum(axis=0), pixels[kept].sum(axis=0)]

    def add_full(self, iteration: int, num_images: int) -> None:
        """Count a batch that was trained on without a look at its images."""
        self._stretch(iteration).totals[0] += num_images

    def merge(self, other: SelectionRecord) -> None:
        """Add another record's counts, of another process for example. It is left as it is."""
        rows = self._rows(other.paths)
        self._counts[rows] += other._counts[: len(other)]
        self._log_density[rows] += other._log_density[: len(other)]
        columns = self._columns(other.classes)
        while self.width < other.width:
            self._double()
        for index, row in other._stretches.items():
            stretch = self._stretch(index * other.width)
            stretch.totals += row.totals
            stretch.density += row.density
            np.add.at(stretch.pixels, (slice(None), columns), row.wider(len(columns)).pixels)

    def to_bytes(self) -> bytes:
        """Everything, compressed, for a file, a checkpoint or another process."""
        timeline = self.timeline
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            paths=_encode(self.paths),
            counts=self._counts[: len(self)],
            log_density=self._log_density[: len(self)],
            classes=_encode(self.classes),
            width=self.width,
            **timeline.__dict__,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> SelectionRecord:
        """The record that :meth:`to_bytes` described."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            state = dict(arrays)
        record = cls(_decode(state['classes']))
        rows = record._rows(_decode(state['paths']))
        record._counts[rows] = state['counts']
        record._log_density[rows] = state['log_density']
        record.width = int(state['width'])
        for index, first in enumerate(state['first'].tolist()):
            record._stretches[first // record.width] = _Stretch(
                state['totals'][index], state['density'][index], state['pixels'][index]
            )
        return record

    def save(self, path: str | os.PathLike) -> None:
        """Write to an ``.npz`` file; after a crash the old or the new file is there, never half."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike) -> SelectionRecord:
        """Read what :meth:`save` wrote."""
        return cls.from_bytes(Path(path).read_bytes())

    def _rows(self, paths: Sequence[str]) -> np.ndarray:
        rows = np.array([self._row.setdefault(p, len(self._row)) for p in paths], dtype=np.int64)
        missing = len(self._row) - len(self._counts)
        if missing > 0:
            grow = max(missing, len(self._counts))
            self._counts = np.pad(self._counts, ((0, grow), (0, 0)))
            self._log_density = np.pad(self._log_density, (0, grow))
        return rows

    def _columns(self, classes: Sequence[str]) -> list[int]:
        """Where these classes are counted; new ones are added."""
        self.classes += [name for name in dict.fromkeys(classes) if name not in self.classes]
        return [self.classes.index(name) for name in classes]

    def _stretch(self, iteration: int) -> _Stretch:
        index = iteration // self.width
        if index not in self._stretches:
            self._stretches[index] = _Stretch()
            if len(self._stretches) > _MAX_ROWS:
                self._double()
            index = iteration // self.width
        return self._stretches[index].wider(len(self.classes))

    def _double(self) -> None:
        """Join neighbouring stretches."""
        halves, self._stretches = self._stretches, {}
        self.width *= 2
        for index, half in halves.items():
            whole = self._stretches.setdefault(index // 2, _Stretch()).wider(len(self.classes))
            whole.totals += half.totals
            whole.density += half.density
            whole.pixels += half.wider(len(self.classes)).pixels


class Timeline:
    """Totals of the stretches of a run, one row each. First dropped, then kept images in pairs.

    Attributes:
        first: (T,) int64, ascending: iteration, counted from 0, with which each begins.
        totals: (T, 4) int64, see the properties.
        density: (T, 2, B) int64: images by log density, one bin a nat; ``edges`` are the (B + 1,)
            borders. What lies beyond them is counted in the outermost bins.
        pixels: (T, 2, C) int64: pixels of each class.
    """

    edges = np.arange(_LOWEST, _HIGHEST + 1)

    def __init__(
        self, first: np.ndarray, totals: np.ndarray, density: np.ndarray, pixels: np.ndarray
    ) -> None:
        self.first = first
        self.totals = totals
        self.density = density
        self.pixels = pixels

    @property
    def full(self) -> np.ndarray:
        """(T,) images that were trained on without a look at them."""
        return self.totals[:, 0]

    @property
    def candidates(self) -> np.ndarray:
        """(T,) images in blocked steps."""
        return self.totals[:, 1]

    @property
    def kept(self) -> np.ndarray:
        """(T,) images that survived a blocked step."""
        return self.totals[:, 2]

    @property
    def nonfinite(self) -> np.ndarray:
        """(T,) images whose features held a NaN or Inf."""
        return self.totals[:, 3]


class _Stretch:
    """Sums over one stretch, see :class:`Timeline`."""

    def __init__(
        self,
        totals: np.ndarray | None = None,
        density: np.ndarray | None = None,
        pixels: np.ndarray | None = None,
    ) -> None:
        self.totals = np.zeros(4, np.int64) if totals is None else totals
        self.density = np.zeros((2, _NUM_BINS), np.int64) if density is None else density
        self.pixels = np.zeros((2, 0), np.int64) if pixels is None else pixels

    def wider(self, num_classes: int) -> _Stretch:
        """Itself, with room for so many classes."""
        missing = num_classes - self.pixels.shape[1]
        if missing > 0:
            self.pixels = np.pad(self.pixels, ((0, 0), (0, missing)))
        return self


def _encode(names: Sequence[str]) -> np.ndarray:
    # surrogateescape: the name of a file need not be valid UTF-8.
    text = _SEPARATOR.join(names).encode(errors='surrogateescape')
    return np.frombuffer(text, dtype=np.uint8)


def _decode(array: np.ndarray) -> list[str]:
    text = array.tobytes().decode(errors='surrogateescape')
    return text.split(_SEPARATOR) if text else []
