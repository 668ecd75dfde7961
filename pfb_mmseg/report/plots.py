"""The figures of the report, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .counts import Timeline
from .scores import ScoreWords

ACCENT, GREY, INK = '#2563eb', '#b6bcc6', '#374151'
_MOST_CLASSES = 20
_BINS_SHOWN = 40


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


def scores(timeline: Timeline, words: ScoreWords) -> bytes:
    """Scores of kept and dropped images in the first, middle and last third of pruning."""
    scored = np.flatnonzero(timeline.scores.sum(axis=(1, 2)))
    counts = np.array([timeline.scores[part].sum(axis=0) for part in np.array_split(scored, 3)])
    edges, counts = _zoom(timeline.edges, counts)
    left, width = edges[:-1], np.diff(edges)
    figure = Figure(figsize=(5, 4), layout='constrained')
    first = None
    for row, name in enumerate(('early', 'middle', 'late')):
        axes = first = figure.add_subplot(3, 1, row + 1, sharex=first)
        _style(axes)
        axes.set_ylabel(name)
        axes.set_yticks([])
        axes.spines['left'].set_visible(False)
        axes.tick_params(labelbottom=row == 2)
        dropped, kept = counts[row]
        axes.bar(left, kept, width, align='edge', color=ACCENT, label='kept')
        axes.bar(left, dropped, width, bottom=kept, align='edge', color=GREY, label='dropped')
        if row == 0:
            axes.legend(frameon=False)
    if not np.allclose(width, width[0]):
        # Bins as wide as they are high in value look alike on a logarithmic axis.
        smallest = np.abs(edges[:-1][counts.any(axis=(0, 1)) & (edges[:-1] != 0)])
        axes.set_xscale('symlog', linthresh=smallest.min(initial=1))
    axes.set_xlabel(f'{words.label} (right: {words.high})')
    return _png(figure)


def centroid_usage(counts: np.ndarray, idle: np.ndarray) -> bytes:
    """Share of the kept images that each centroid stands for, busiest first."""
    order = np.argsort(-counts, kind='stable')
    share = counts[order] / max(counts.sum(), 1)
    figure, axes = _figure()
    in_use = (idle[order] < 200) & (counts[order] > 0)
    places = np.arange(1, len(order) + 1)
    axes.bar(places, share, color=np.where(in_use, ACCENT, GREY), width=0.8)
    axes.axhline(1 / len(order), color=INK, lw=1, ls=':')
    axes.set(xlabel='centroid, busiest first (dotted: equal shares)', xlim=(0.4, len(order) + 0.6))
    axes.yaxis.set_major_formatter(
        lambda value, _: f'{value:.3g}' if value < 0.01 else f'{value:.0%}'
    )
    return _png(figure)


def class_shares(classes: Sequence[str], counts: np.ndarray, counted: str) -> bytes:
    """Share of each class in what is counted of dropped and kept images; (2, C) counts.

    Of many classes, those whose shares differ most.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-np.abs(share[1] - share[0]), kind='stable')[:_MOST_CLASSES]
    order = order[np.argsort(share[:, order].sum(axis=0), kind='stable')]
    figure = Figure(figsize=(5, 1.1 + 0.28 * len(order)), layout='constrained')
    axes = figure.add_subplot()
    _style(axes)
    places = np.arange(len(order))
    axes.barh(places + 0.2, share[1, order], 0.38, color=ACCENT, label='in kept images')
    axes.barh(places - 0.2, share[0, order], 0.38, color=GREY, label='in dropped images')
    axes.set_yticks(places, [_short(classes[c]) for c in order])
    axes.set(xlabel=f'share of the {counted}', ylim=(-0.7, len(order) - 0.3))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.legend(frameon=False, loc='lower right')
    return _png(figure)


def _zoom(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stretch that holds all but a thousandth on each side, in 40 bins at most.

    Each is as many of the given ones. What lies beyond is counted in the outermost bins.
    """
    share = counts.reshape(-1, counts.shape[-1]).sum(axis=0).cumsum() / counts.sum()
    first, last = np.searchsorted(share, [0.001, 0.999]) + [0, 1]
    width = max(1, -(-(last - first) // _BINS_SHOWN))
    starts = np.arange(first, last, width)
    joined = np.add.reduceat(counts, np.append(0, starts[1:]), axis=-1)
    borders = np.append(starts, starts[-1] + width).clip(max=len(edges) - 1)
    return edges[borders], joined


def _short(name: str, length: int = 18) -> str:
    # A dollar sign would begin a formula.
    name = name if len(name) <= length else f'{name[: length - 1]}…'
    return name.replace('$', r'\$')


def _figure() -> tuple[Figure, object]:
    figure = Figure(figsize=(5, 3), layout='constrained')
    axes = figure.add_subplot()
    _style(axes)
    return figure, axes


def _style(axes) -> None:
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    for side in ('left', 'bottom'):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, length=3)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=180)
    return buffer.getvalue()
