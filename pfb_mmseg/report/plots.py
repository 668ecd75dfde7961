"""The figures of the report, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .record import SelectionRecord
from .scores import ScoreWords

ACCENT, GREY, INK = '#2563eb', '#b6bcc6', '#374151'
_MOST_CLASSES = 20


def over_the_run(
    kept: tuple[np.ndarray, np.ndarray], saved: tuple[np.ndarray, np.ndarray]
) -> bytes:
    """Share kept and share of the time saved, each as iterations and values in [0, 1]."""
    figure, axes = _figure()
    axes.plot(*kept, color=GREY, lw=2, label='share of images kept')
    axes.plot(*saved, color=ACCENT, lw=2, label='share of time saved so far')
    lowest = min(0, *saved[1]) if len(saved[1]) else 0
    axes.set(xlabel='iteration', ylim=(lowest - 0.04, 1.04), xlim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.legend(frameon=False, loc='best')
    return _png(figure)


def scores(record: SelectionRecord, words: ScoreWords) -> bytes:
    """Mean scores of the images, counted as often as each was kept and dropped."""
    scored = np.isfinite(record.mean_score)
    score, kept = record.mean_score[scored], record.kept[scored]
    score = score.clip(*np.quantile(score, [0.005, 0.995]))  # the last bins hold what lies beyond
    figure, axes = _figure()
    axes.hist(
        [score, score],
        bins=40,
        weights=[kept, record.candidates[scored] - kept],
        stacked=True,
        color=[ACCENT, GREY],
        label=['kept', 'dropped'],
    )
    axes.set_yticks([])
    right = words.first if words.sought > 0 else words.last
    axes.set_xlabel(f'{words.label} (right: {right})')
    axes.legend(frameon=False)
    return _png(figure)


def class_shares(classes: Sequence[str], counts: np.ndarray, counted: str) -> bytes:
    """Share of each class in what is counted of dropped and kept images; (2, C) counts.

    Of many classes, those whose shares differ most.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-np.abs(share[1] - share[0]), kind='stable')[:_MOST_CLASSES]
    order = order[np.argsort(share[:, order].sum(axis=0), kind='stable')]
    figure, axes = _figure(height=1.1 + 0.28 * len(order))
    places = np.arange(len(order))
    axes.barh(places + 0.2, share[1, order], 0.38, color=ACCENT, label='in kept images')
    axes.barh(places - 0.2, share[0, order], 0.38, color=GREY, label='in dropped images')
    axes.set_yticks(places, [_short(classes[c]) for c in order])
    axes.set(xlabel=f'share of the {counted}', ylim=(-0.7, len(order) - 0.3))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.legend(frameon=False, loc='lower right')
    return _png(figure)


def _short(name: str, length: int = 18) -> str:
    # A dollar sign would begin a formula.
    name = name if len(name) <= length else f'{name[: length - 1]}…'
    return name.replace('$', r'\$')


def _figure(height: float = 3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, height), layout='constrained')
    axes = figure.add_subplot()
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(GREY)
    axes.tick_params(colors=INK, length=3)
    axes.xaxis.label.set_color(INK)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=180)
    return buffer.getvalue()
