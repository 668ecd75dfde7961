"""Sums over selections, kept on the device and read once in a while."""

from __future__ import annotations

import torch
from torch import Tensor

from .selection import Selection


class SelectionStatistics:
    """Adds up how many images stayed, and the scores of those that did and did not.

    Only :meth:`flush` and :meth:`state_dict` wait for the device.
    """

    def __init__(self) -> None:
        self._kept = 0
        self._candidates = 0
        self._score_name: str | None = None
        self._sums: Tensor | None = None  # see add

    def add(self, selection: Selection) -> None:
        """Count one blocked step."""
        self._kept += selection.num_kept
        self._candidates += selection.num_candidates
        if selection.score is None:
            return
        self._score_name = selection.score_name
        finite = torch.isfinite(selection.score)
        score = selection.score.masked_fill(~finite, 0)
        kept, finite = selection.kept.to(score.dtype), finite.to(score.dtype)
        sums = torch.stack(
            [
                (score * kept).sum(),
                (finite * kept).sum(),
                (score * (1 - kept)).sum(),
                (finite * (1 - kept)).sum(),
                (1 - finite).sum(),
            ]
        )
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums

    def count_full(self, batch_size: int) -> None:
        """Count a step in which every image stayed and none was scored."""
        self._kept += batch_size
        self._candidates += batch_size

    def flush(self) -> dict[str, float]:
        """Totals since the last call; starts over.

        ``kept`` and ``candidates`` are numbers of images. Where images got a score, by its name:
        ``log_density_kept`` and ``log_density_dropped``, means over the images with a finite score,
        left out where there is no image; and ``nonfinite``, the number of the other images.
        """
        totals = {'kept': float(self._kept), 'candidates': float(self._candidates)}
        if self._sums is not None:
            kept, num_kept, dropped, num_dropped, nonfinite = self._sums.tolist()
            if num_kept:
                totals[f'{self._score_name}_kept'] = kept / num_kept
            if num_dropped:
                totals[f'{self._score_name}_dropped'] = dropped / num_dropped
            totals['nonfinite'] = nonfinite
        self.__init__()
        return totals

    def state_dict(self) -> dict:
        """The sums since the last :meth:`flush`, as plain numbers."""
        return {
            'kept': self._kept,
            'candidates': self._candidates,
            'sums': None if self._sums is None else self._sums.tolist(),
            'score_name': self._score_name,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on adding where :meth:`state_dict` was taken."""
        self._kept = state['kept']
        self._candidates = state['candidates']
        self._score_name = state['score_name']
        self._sums = None if state['sums'] is None else torch.tensor(state['sums'])
