"""Running sums over selections, kept on the device and read once in a while."""

from __future__ import annotations

import torch

from .selection import LOG_DENSITY, Selection


class SelectionStatistics:
    """Adds up what was kept and dropped; :meth:`flush` reads the sums and starts over.

    Only :meth:`flush` and :meth:`state_dict` wait for the device.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._kept = 0
        self._candidates = 0
        self._score_name: str | None = None
        # Sums over kept, over dropped images of: score, finite ones; and non-finite images.
        self._sums: torch.Tensor | None = None

    def add(self, selection: Selection) -> None:
        """Count one blocked step."""
        self._kept += selection.num_kept
        self._candidates += selection.num_candidates
        if selection.score is None:
            return
        self._score_name = selection.score_name
        finite = torch.isfinite(selection.score)
        value = selection.score.masked_fill(~finite, 0)
        kept, finite = selection.kept.to(value.dtype), finite.to(value.dtype)
        sums = torch.stack(
            [
                (value * kept).sum(),
                (finite * kept).sum(),
                (value * (1 - kept)).sum(),
                (finite * (1 - kept)).sum(),
                (1 - finite).sum(),
            ]
        )
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums

    def count_full(self, batch_size: int) -> None:
        """Count a step in which every image was trained on without being scored."""
        self._kept += batch_size
        self._candidates += batch_size

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
        self._score_name = state.get('score_name', LOG_DENSITY)  # which 0.1 did not need to name
        sums = state['sums']
        self._sums = None if sums is None else torch.tensor(sums)

    def flush(self) -> dict[str, float]:
        """Totals since the last call.

        Returns:
            ``kept``, ``candidates`` (images) and, where images got a score, such as
            ``log_density``: ``log_density_kept``, ``log_density_dropped`` (means over finite
            images) and ``nonfinite`` (images); a mean over no image is left out.
        """
        totals = {'kept': float(self._kept), 'candidates': float(self._candidates)}
        if self._sums is not None:
            kept, num_kept, dropped, num_dropped, nonfinite = self._sums.tolist()
            if num_kept:
                totals[f'{self._score_name}_kept'] = kept / num_kept
            if num_dropped:
                totals[f'{self._score_name}_dropped'] = dropped / num_dropped
            totals['nonfinite'] = nonfinite
        self._reset()
        return totals
