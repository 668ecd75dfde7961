"""Sums over selections, read once in a while."""

from __future__ import annotations

from collections import Counter

from .selection import Selection


class SelectionStatistics:
    """Adds up how many images stayed, and the scores of those that did and did not."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._sums = Counter()
        self._score_name: str | None = None

    def add(self, selection: Selection) -> None:
        """Count one blocked step. Waits for the device."""
        self._sums.update(kept=selection.num_kept, candidates=selection.num_candidates)
        if selection.score is None:
            return
        found = selection.on_host
        self._score_name = found.score_name
        finite = found.score.isfinite()
        self._sums['nonfinite'] += int((~finite).sum())
        for name, part in (('kept', found.kept & finite), ('dropped', ~found.kept & finite)):
            self._sums[f'{name}_number'] += int(part.sum())
            self._sums[f'{name}_score'] += float(found.score[part].double().sum())

    def count_full(self, batch_size: int) -> None:
        """Count a step in which every image stayed and none was scored."""
        self._sums.update(kept=batch_size, candidates=batch_size)

    def flush(self) -> dict[str, float]:
        """Totals since the last call; starts over.

        ``kept`` and ``candidates`` are numbers of images. Where images got a score, by its name:
        ``log_density_kept`` and ``log_density_dropped``, means over the images with a finite score,
        left out where there is no image; and ``nonfinite``, the number of the other images.
        """
        sums, name = self._sums, self._score_name
        self._start()
        totals = {'kept': sums['kept'], 'candidates': sums['candidates']}
        if name is not None:
            for part in ('kept', 'dropped'):
                if sums[f'{part}_number']:
                    totals[f'{name}_{part}'] = sums[f'{part}_score'] / sums[f'{part}_number']
            totals['nonfinite'] = sums['nonfinite']
        return totals

    def state_dict(self) -> dict:
        """The sums since the last :meth:`flush`, as plain numbers."""
        return {'sums': dict(self._sums), 'score_name': self._score_name}

    def load_state_dict(self, state: dict) -> None:
        """Go on adding where :meth:`state_dict` was taken."""
        self._sums, self._score_name = Counter(state['sums']), state['score_name']
