"""SelectionRecord: how often each image was a candidate, was kept, and how it scored."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.selection import LOG_DENSITY

RECORD_NAME = 'pfb_record.npz'  # in the work dir of a run
SCHEMA = 1  # goes up with every change of what to_bytes writes

_SEPARATOR = '\0'  # the one character that no path holds


class SelectionRecord:
    """Counts per image over a run, and per class over all of its images.

    An image is a sample of the data set. Slices or frames of one file are images of their own, as
    long as their ``places`` differ.

    Args:
        classes: names of the classes whose pixels or images are counted.

    Attributes:
        paths: list of str, of each image, in the order in which the images were first seen. An
            image without a file is called after its place.
        places: (M,) int64, place of each in the data set; -1 where :meth:`add` was told none.
        candidates, kept: (M,) int64, number of blocked steps an image was in, and survived.
        kept_share: float, share of the candidates that were kept; None before the first.
        score_name: str, what the images were scored by, such as ``'log_density'``; None while
            nothing was scored. Where it changes, as in a run resumed with another criterion, the
            scores before are dropped.
        mean_score: (M,) float64, over the steps in which an image had a finite score, else NaN.
        classes: list of str. Where they change, the counts before are dropped.
        class_unit: str, what is counted, ``'pixels'`` (segmentation) or ``'images'``
            (classification); None while nothing was.
        class_counts: (2, C) int64, of dropped and of kept images.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.score_name: str | None = None
        self.class_unit: str | None = None
        self._count_classes(classes)
        self._row: dict[tuple[int, str], int] = {}  # by place and path
        # Columns: candidates, kept, scored, sum of the scores. Grown by doubling.
        self._table = np.zeros((64, 4))

    def __len__(self) -> int:
        return len(self._row)

    @property
    def paths(self) -> list[str]:
        return [path for _, path in self._row]

    @property
    def places(self) -> np.ndarray:
        return np.array([place for place, _ in self._row], np.int64)

    @property
    def candidates(self) -> np.ndarray:
        return self._table[: len(self), 0].astype(np.int64)

    @property
    def kept(self) -> np.ndarray:
        return self._table[: len(self), 1].astype(np.int64)

    @property
    def kept_share(self) -> float | None:
        return float(self.kept.sum() / self.candidates.sum()) if len(self) else None

    @property
    def mean_score(self) -> np.ndarray:
        scored, total = self._table[: len(self), 2:].T
        return np.where(scored > 0, total / np.maximum(scored, 1), np.nan)

    def add(
        self,
        paths: Sequence[str],
        kept: np.ndarray,
        score: np.ndarray | None = None,
        class_counts: np.ndarray | None = None,
        score_name: str = LOG_DENSITY,
        class_unit: str = 'pixels',
        places: np.ndarray | None = None,
    ) -> None:
        """Count one blocked batch.

        Args:
            paths: of the N candidates.
            kept: (N,) bool, True for those that stayed.
            score: (N,), or None if nothing was scored.
            class_counts: (N, C) integers, of each of the ``classes``; None if there are no labels.
            score_name, class_unit: what ``score`` is, and what ``class_counts`` counts.
            places: (N,) int64, of the candidates in the data set; those below 0 are no samples of
                it and have no row. None: each path is a sample.
        """
        known = np.ones(len(kept), bool) if places is None else places >= 0
        keys = zip([-1] * len(kept) if places is None else places.tolist(), paths, strict=True)
        rows = self._rows([key for key, one in zip(keys, known, strict=True) if one])
        seen = np.zeros((len(kept), 4))
        seen[:, 0], seen[:, 1] = 1, kept
        if score is not None:
            self._name_scores(score_name)
            seen[:, 2] = np.isfinite(score)
            seen[:, 3] = np.where(np.isfinite(score), score, 0)
        np.add.at(self._table, rows, seen[known])
        if class_counts is not None:
            self.class_unit = class_unit
            self.class_counts += [class_counts[~kept].sum(axis=0), class_counts[kept].sum(axis=0)]

    def merge(self, other: SelectionRecord) -> None:
        """Add the counts of another record, of another process or of a later time."""
        if other.score_name is not None:
            self._name_scores(other.score_name)
        rows = self._rows(list(other._row))
        self._table[rows] += other._table[: len(other)]
        if other.class_unit is not None:
            if self.classes != other.classes:
                self._count_classes(other.classes)
            self.class_unit = other.class_unit
            self.class_counts += other.class_counts

    def to_bytes(self) -> bytes:
        """Everything, compressed, for a file, a checkpoint or another process."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            schema=SCHEMA,
            paths=_encode(self.paths),
            places=self.places,
            counts=self._table[: len(self), :3].astype(np.int32),
            score=self._table[: len(self), 3],
            score_name=self.score_name or '',
            classes=_encode(self.classes),
            class_unit=self.class_unit or '',
            class_counts=self.class_counts,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> SelectionRecord:
        """The record that :meth:`to_bytes` described.

        Raises:
            ValueError: another version of pfb_mmseg wrote it in another layout.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            state = dict(arrays)
        schema = int(state.get('schema', 0))
        if schema != SCHEMA:
            raise ValueError(
                f'the record has schema {schema}, expected {SCHEMA}: read it with the version of '
                'pfb_mmseg that wrote it'
            )
        record = cls(_decode(state['classes']))
        record.score_name = str(state['score_name']) or None
        record.class_unit = str(state['class_unit']) or None
        record.class_counts = state['class_counts']
        keys = zip(state['places'].tolist(), _decode(state['paths']), strict=True)
        rows = record._rows(list(keys))
        record._table[rows] = np.column_stack([state['counts'], state['score']])
        return record

    def save(self, path: str | os.PathLike) -> None:
        """Write to an ``.npz`` file; after a crash the old or the new file is there, never half."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike) -> SelectionRecord:
        """Read what :meth:`save` wrote."""
        return cls.from_bytes(Path(path).read_bytes())

    def _rows(self, keys: Sequence[tuple[int, str]]) -> np.ndarray:
        """Rows of these images; new images get new rows."""
        rows = np.array([self._row.setdefault(key, len(self._row)) for key in keys], np.int64)
        missing = len(self._row) - len(self._table)
        if missing > 0:
            self._table = np.pad(self._table, ((0, max(missing, len(self._table))), (0, 0)))
        return rows

    def _name_scores(self, score_name: str) -> None:
        """Drop the scores of any other name."""
        if self.score_name != score_name:
            self.score_name = score_name
            self._table[:, 2:] = 0

    def _count_classes(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.class_counts = np.zeros((2, len(self.classes)), np.int64)


def image_name(path: str | os.PathLike | None, place: int) -> str:
    """How an image is called: its path or, if it has none, its place in the data set."""
    return f'image {place}' if path is None else str(path)


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file; after a crash the old or the new one is there, never half."""
    partial = Path(f'{os.fspath(path)}.partial')
    with open(partial, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _encode(names: Sequence[str]) -> np.ndarray:
    # surrogateescape: the name of a file need not be valid UTF-8.
    text = _SEPARATOR.join(names).encode(errors='surrogateescape')
    return np.frombuffer(text, dtype=np.uint8)


def _decode(array: np.ndarray) -> list[str]:
    text = array.tobytes().decode(errors='surrogateescape')
    return text.split(_SEPARATOR) if text else []
