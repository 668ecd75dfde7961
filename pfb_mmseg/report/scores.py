"""How the pages speak of what the images were scored by."""

from __future__ import annotations

from typing import NamedTuple

from ..core.selection import LOG_DENSITY


class ScoreWords(NamedTuple):
    """What a score is called, and what its two ends mean.

    Attributes:
        label: of an axis.
        heading: of what shows how the images scored.
        first, last: the images that are sought by this score, and those at the other end, as
            superlatives.
        about_first, about_last: what to make of them.
        sought: 1 if images are chosen for a high score, -1 if for a low one.
    """

    label: str
    heading: str
    first: str
    last: str
    about_first: str
    about_last: str
    sought: int = 1


def words_for(score_name: str) -> ScoreWords:
    """Of a score that nothing is known of, its name; high ones are taken to be sought."""
    if score_name == LOG_DENSITY:
        return ScoreWords(
            label='log density',
            heading='How common the images looked',
            first='rarest',
            last='commonest',
            about_first='Worth a look: new to the model, or broken.',
            about_last='The model has seen many like these.',
            sought=-1,
        )
    if score_name in ('loss', 'exit_loss'):
        return ScoreWords(
            label='loss' if score_name == 'loss' else 'loss at the exit',
            heading='How hard the images were',
            first='hardest',
            last='easiest',
            about_first='Worth a look: rare, difficult, or labelled wrongly.',
            about_last='The model gets these right already.',
        )
    label = score_name.replace('_', ' ')
    return ScoreWords(
        label=label,
        heading=f'How the images scored: {label}',
        first='highest',
        last='lowest',
        about_first='What the criterion chooses first.',
        about_last='What it chooses last.',
    )
