"""How the pages speak of what the images were scored by."""

from __future__ import annotations

from typing import NamedTuple

from ..core.selection import LOG_DENSITY


class ScoreWords(NamedTuple):
    """What a score is called, and what its two ends mean.

    Attributes:
        label: of an axis.
        first, last: the images that are sought by this score, and those at the other end, as
            superlatives.
        sought: 1 if images are chosen for a high score, -1 if for a low one.
    """

    label: str
    first: str
    last: str
    sought: int = 1


def words_for(score_name: str) -> ScoreWords:
    """Of a score that nothing is known of, its name; high ones are taken to be sought."""
    if score_name == LOG_DENSITY:
        return ScoreWords('log density', 'rarest', 'commonest', sought=-1)
    if score_name in ('loss', 'exit_loss'):
        return ScoreWords(
            'loss' if score_name == 'loss' else 'loss at the exit', 'hardest', 'easiest'
        )
    return ScoreWords(score_name.replace('_', ' '), 'highest', 'lowest')
