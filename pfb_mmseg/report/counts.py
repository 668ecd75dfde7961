"""SelectionRecord: how often each image was kept, and totals over the run."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.selection import LOG_DENSITY
from .files import write_atomically

RECORD_NAME = 'pfb_record.npz'  # in the work dir of a run
SCHEMA = 1  # goes up with every change of what to_bytes writes

_MAX_ROWS = 256
_NATS = np.arange(-1024.0, 1025.0)  # borders of the bins of log densities
# Borders of the bins of any other score: 16 to a factor of two, from a millionth to a million, on
# both sides of zero.
_OCTAVES = 2.0 ** np.arange(-20, 20 + 1 / 32, 1 / 16)
_OCTAVES = np.concatenate([-_OCTAVES[::-1], [0.0], _OCTAVES])
_SEPARATOR = '\0'  # the one character that no path holds


class SelectionRecord:
    """Counts per image, and totals over stretches of the run.

    A stretch is ``width`` iterations long: as many as ``num_iters`` asks for, twice as many
    whenever there are more than 256 stretches, so a record does not grow with the length of the
    run.

    An image is a sample of the data set. Slices or frames of one file are images of their own, as
    long as they are told apart by their ``places``.

    Args:
        classes: whose pixels or images are to be counted.
        num_iters: length of the run, so that its stretches need not be joined later; 0 if unknown.

    Attributes:
        paths: list of str, of each image, see :func:`image_name`, in the order in which the images
            were first seen.
        places: (M,) int64, place of each in the data set; -1 where :meth:`add` was told none.
        candidates, kept: (M,) int32, number of blocked steps an image was in, and survived.
        score_name: str, what the images were scored by, ``'log_density'`` (natural log; low is
            rare) for one; None while nothing was scored. Where it changes, as in a run resumed
            with another criterion, what is known of the scores before is dropped.
        mean_score: (M,) float64, over the steps in which an image had a finite score; NaN where
            there was none.
        kept_share: float, share of the candidates that were kept; None before the first.
        classes: list of str, whose pixels or images are counted.
        class_unit: str, which of the two, ``'pixels'`` (segmentation) or ``'images'``
            (classification); None while nothing was counted.
        width: iterations in a stretch.
    """

    def __init__(self, classes: Sequence[str] = (), num_iters: int = 0) -> None:
        self.classes = list(classes)
        self.class_unit: str | None = None
        self.score_name: str | None = None
        self.width = 1
        while self.width * _MAX_ROWS < num_iters:
            self.width *= 2
        self._row: dict[tuple[int, str], int] = {}  # by place and path
        # Columns: candidates, kept, scored; one row an image, grown by doubling.
        self._counts = np.zeros((64, 3), dtype=np.int32)
        self._score = np.zeros(64)
        self._stretches: dict[int, _Stretch] = {}

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
        return self._counts[: len(self), 0]

    @property
    def kept(self) -> np.ndarray:
        return self._counts[: len(self), 1]

    @property
    def kept_share(self) -> float | None:
        candidates = self.candidates.sum()
        return float(self.kept.sum() / candidates) if candidates else None

    @property
    def mean_score(self) -> np.ndarray:
        scored = self._counts[: len(self), 2]
        total = self._score[: len(self)]
        return np.where(scored > 0, total / np.maximum(scored, 1), np.nan)

    @property
    def timeline(self) -> Timeline:
        """The totals of every stretch, ascending."""
        stretches = sorted(self._stretches)
        rows = [self._stretches[s].wider(len(self.classes)) for s in stretches]
        edges = self._edges
        shape = {
            'totals': (4,),
            'scores': (2, len(edges) - 1),
            'class_counts': (2, len(self.classes)),
        }
        column = {
            name: np.array([getattr(row, name) for row in rows], np.int64).reshape(len(rows), *size)
            for name, size in shape.items()
        }
        first = np.array(stretches, dtype=np.int64) * self.width
        return Timeline(first, edges=edges, **column)

    def add(
        self,
        iteration: int,
        paths: Sequence[str],
        kept: np.ndarray,
        score: np.ndarray | None = None,
        class_counts: np.ndarray | None = None,
        score_name: str | None = LOG_DENSITY,
        class_unit: str | None = 'pixels',
        places: np.ndarray | None = None,
    ) -> None:
        """Count one blocked batch.

        Args:
            iteration: t, counted from 0.
            paths: of the N candidates.
            kept: (N,) bool, True for those that stayed.
            score: (N,), or None if nothing was scored.
            class_counts: (N, C) integers, of each of the ``classes``; None if there are no labels.
            score_name: what ``score`` is; not looked at where there is none.
            class_unit: what ``class_counts`` counts, likewise.
            places: (N,) int64, of the candidates in the data set; those below 0 are no samples of
                it and count in the totals alone. None: each path is a sample.
        """
        known = np.ones(len(kept), bool) if places is None else places >= 0
        keys = zip([-1] * len(kept) if places is None else places.tolist(), paths, strict=True)
        rows = np.full(len(kept), -1)
        rows[known] = self._rows([key for key, one in zip(keys, known, strict=True) if one])
        np.add.at(self._counts[:, 0], rows[known], 1)
        np.add.at(self._counts[:, 1], rows[known & kept], 1)
        stretch = self._stretch(iteration)
        stretch.totals += [0, len(kept), kept.sum(), 0]
        if score is not None:
            self._speak_of(score_name)
            finite = np.isfinite(score)
            np.add.at(self._counts[:, 2], rows[known & finite], 1)
            np.add.at(self._score, rows[known & finite], score[known & finite])
            stretch.totals[3] += (~finite).sum()
            bins = np.searchsorted(self._edges, score[finite], side='right') - 1
            bins = bins.clip(0, len(self._edges) - 2)
            np.add.at(stretch.scores, (kept[finite].astype(int), bins), 1)
        if class_counts is not None:
            self.class_unit = class_unit
            stretch.class_counts += [
                class_counts[~kept].sum(axis=0),
                class_counts[kept].sum(axis=0),
            ]

    def add_full(self, iteration: int, num_images: int) -> None:
        """Count images that were all trained on, without a choice; 0 changes nothing."""
        if num_images:
            self._stretch(iteration).totals[0] += num_images

    def merge(self, other: SelectionRecord) -> None:
        """Add another record's counts, of another process or of a later time.

        It is left as it is.
        """
        if other.score_name is not None:
            self._speak_of(other.score_name)
        self.class_unit = other.class_unit or self.class_unit
        rows = self._rows(list(other._row))
        self._counts[rows] += other._counts[: len(other)]
        self._score[rows] += other._score[: len(other)]
        columns = self._columns(other.classes)
        while self.width < other.width:
            self._double()
        for index, row in other._stretches.items():
            stretch = self._stretch(index * other.width)
            stretch.totals += row.totals
            if other.score_name is not None:
                stretch.scores += row.scores
            counts = row.wider(len(columns)).class_counts
            np.add.at(stretch.class_counts, (slice(None), columns), counts)

    def to_bytes(self) -> bytes:
        """Everything, compressed, for a file or a checkpoint."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.__getstate__())
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
        record = cls()
        record.__setstate__(state)
        return record

    def __getstate__(self) -> dict[str, np.ndarray]:
        """Everything in arrays without empty ends, for :meth:`to_bytes` and for pickle."""
        timeline = self.timeline
        used = np.flatnonzero(timeline.scores.any(axis=(0, 1)))
        first_bin, end_bin = (used[0], used[-1] + 1) if len(used) else (0, 0)
        return dict(
            schema=np.array(SCHEMA),
            paths=_encode(self.paths),
            places=self.places,
            counts=self._counts[: len(self)],
            score=self._score[: len(self)],
            score_name=_encode([self.score_name or '']),
            classes=_encode(self.classes),
            class_unit=_encode([self.class_unit or '']),
            width=np.array(self.width),
            first=timeline.first,
            totals=timeline.totals,
            scores=timeline.scores[..., first_bin:end_bin],
            first_bin=np.array(first_bin),
            class_counts=timeline.class_counts,
        )

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        self.__init__(_decode(state['classes']))
        self.score_name = ''.join(_decode(state['score_name'])) or None
        self.class_unit = ''.join(_decode(state['class_unit'])) or None
        self.width = int(state['width'])
        keys = zip(state['places'].tolist(), _decode(state['paths']), strict=True)
        rows = self._rows(list(keys))
        self._counts[rows] = state['counts']
        self._score[rows] = state['score']
        bins = int(state['first_bin']) + np.arange(state['scores'].shape[-1])
        for index, first in enumerate(state['first'].tolist()):
            stretch = self._stretch(first)
            stretch.totals += state['totals'][index]
            stretch.scores[:, bins] += state['scores'][index]
            stretch.class_counts += state['class_counts'][index]

    def save(self, path: str | os.PathLike) -> None:
        """Write to an ``.npz`` file; after a crash the old or the new file is there, never half."""
        write_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike) -> SelectionRecord:
        """Read what :meth:`save` wrote."""
        return cls.from_bytes(Path(path).read_bytes())

    def _rows(self, keys: Sequence[tuple[int, str]]) -> np.ndarray:
        rows = np.array([self._row.setdefault(key, len(self._row)) for key in keys], dtype=np.int64)
        missing = len(self._row) - len(self._counts)
        if missing > 0:
            grow = max(missing, len(self._counts))
            self._counts = np.pad(self._counts, ((0, grow), (0, 0)))
            self._score = np.pad(self._score, (0, grow))
        return rows

    def _columns(self, classes: Sequence[str]) -> list[int]:
        """Where these classes are counted; new ones are added."""
        self.classes += [name for name in dict.fromkeys(classes) if name not in self.classes]
        return [self.classes.index(name) for name in classes]

    @property
    def _edges(self) -> np.ndarray:
        """(B + 1,) borders of the bins of the scores, ascending."""
        return _NATS if self.score_name in (None, LOG_DENSITY) else _OCTAVES

    def _speak_of(self, score_name: str) -> None:
        """Drop the scores of any other name."""
        if self.score_name != score_name:
            self.score_name = score_name
            self._counts[:, 2] = 0
            self._score[:] = 0
            for stretch in self._stretches.values():
                stretch.scores = self._no_scores()

    def _no_scores(self) -> np.ndarray:
        return np.zeros((2, len(self._edges) - 1), np.int64)

    def _stretch(self, iteration: int) -> _Stretch:
        index = iteration // self.width
        if index not in self._stretches:
            self._stretches[index] = _Stretch(self._no_scores())
            if len(self._stretches) > _MAX_ROWS:
                self._double()
            index = iteration // self.width
        return self._stretches[index].wider(len(self.classes))

    def _double(self) -> None:
        """Join neighbouring stretches."""
        halves, self._stretches = self._stretches, {}
        self.width *= 2
        for index, half in halves.items():
            whole = self._stretches.setdefault(index // 2, _Stretch(self._no_scores()))
            whole.wider(len(self.classes)).totals += half.totals
            whole.scores += half.scores
            whole.class_counts += half.wider(len(self.classes)).class_counts


class Timeline:
    """Totals of the stretches of a run, one row each. First dropped, then kept images in pairs.

    Attributes:
        first: (T,) int64, ascending: iteration, counted from 0, with which each begins.
        totals: (T, 4) int64, see the properties.
        scores: (T, 2, B) int64: images by score.
        edges: (B + 1,) float64, borders of these bins: one nat wide for log densities, a sixteenth
            of a factor of two for any other score. What lies beyond is in the outermost bins.
        class_counts: (T, 2, C) int64: pixels of each class, or images, see
            :attr:`SelectionRecord.class_unit`.
    """

    def __init__(
        self,
        first: np.ndarray,
        totals: np.ndarray,
        scores: np.ndarray,
        edges: np.ndarray,
        class_counts: np.ndarray,
    ) -> None:
        self.first = first
        self.totals = totals
        self.scores = scores
        self.edges = edges
        self.class_counts = class_counts

    @property
    def full(self) -> np.ndarray:
        """(T,) images of steps in which every image was trained on, without a choice."""
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
        """(T,) images without a finite score, as features that hold a NaN or Inf have none."""
        return self.totals[:, 3]


class _Stretch:
    """Sums over one stretch, see :class:`Timeline`."""

    def __init__(self, scores: np.ndarray) -> None:
        self.totals = np.zeros(4, np.int64)
        self.scores = scores
        self.class_counts = np.zeros((2, 0), np.int64)

    def wider(self, num_classes: int) -> _Stretch:
        """Itself, with room for so many classes."""
        missing = num_classes - self.class_counts.shape[1]
        if missing > 0:
            self.class_counts = np.pad(self.class_counts, ((0, 0), (0, missing)))
        return self


def image_name(path: str | os.PathLike | None, index: int | None) -> str:
    """How an image is called: its path or, if it has none, its place in the data set."""
    if path is not None:
        return str(path)
    return '<no path>' if index is None else f'image {index}'


def _encode(names: Sequence[str]) -> np.ndarray:
    # surrogateescape: the name of a file need not be valid UTF-8.
    text = _SEPARATOR.join(names).encode(errors='surrogateescape')
    return np.frombuffer(text, dtype=np.uint8)


def _decode(array: np.ndarray) -> list[str]:
    text = array.tobytes().decode(errors='surrogateescape')
    return text.split(_SEPARATOR) if text else []
