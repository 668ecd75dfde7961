"""How the pages speak of what the images were scored by."""

from __future__ import annotations

from typing import NamedTuple

from ..core.selection import LOG_DENSITY


class ScoreWords(NamedTuple):
    """What a score is called, and what its two ends mean.

    Attributes:
        label: of an axis.
        heading: of what shows how the images scored.
        low, high: what an image of a low, of a high score is, as superlatives.
        sought: 1 if images are chosen for a high score, -1 if for a low one.
        about_sought, about_others: what to make of the images at either end.
    """

    label: str
    heading: str
    low: str
    high: str
    sought: int
    about_sought: str
    about_others: str

    @property
    def first(self) -> str:
        """The end that is sought."""
        return self.high if self.sought > 0 else self.low

    @property
    def last(self) -> str:
        """The other end."""
        return self.low if self.sought > 0 else self.high


def words_for(score_name: str) -> ScoreWords:
    """Of a score that nothing is known of, its name; high ones are taken to be sought."""
    if score_name == LOG_DENSITY:
        return ScoreWords(
            label='log density',
            heading='How common the images looked',
            low='rarest',
            high='commonest',
            sought=-1,
            about_sought='Worth a look: new to the model, or broken.',
            about_others='The model has seen many like these.',
        )
    if score_name in ('loss', 'exit_loss'):
        return ScoreWords(
            label='loss' if score_name == 'loss' else 'loss at the exit',
            heading='How hard the images were',
            low='easiest',
            high='hardest',
            sought=1,
            about_sought='Worth a look: rare, difficult, or labelled wrongly.',
            about_others='The model gets these right already.',
        )
    label = score_name.replace('_', ' ')
    return ScoreWords(
        label=label,
        heading=f'How the images scored: {label}',
        low='lowest',
        high='highest',
        sought=1,
        about_sought='What the criterion chooses first.',
        about_others='What it chooses last.',
    )
