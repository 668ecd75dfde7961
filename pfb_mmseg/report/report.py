"""The report of a run: one page that needs no other file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config

from ..progress import track
from . import page
from .images import ImageSet
from .page import Picture
from .record import RECORD_NAME, SelectionRecord
from .scalars import METRICS, read_scalars
from .scores import words_for

_BLUE, _GREY = '#2563eb', '#b6bcc6'
_MOST_CLASSES = 20


def write_report(
    work_dir: str | os.PathLike, out_dir: str | os.PathLike | None = None, num_images: int = 12
) -> Path:
    """Write ``index.html``, which needs no other file.

    Args:
        work_dir: of a run with PFBHook, finished or not.
        out_dir: None is ``<work_dir>/pruning_report``.
        num_images: in each gallery.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: nothing was logged in ``work_dir``.
        ValueError: the run had no PFBHook.
    """
    work_dir = Path(work_dir)
    train, val = read_scalars(work_dir)
    written = (work_dir / RECORD_NAME).is_file()
    record = SelectionRecord.load(work_dir / RECORD_NAME) if written else SelectionRecord()
    if not any('pfb/kept' in entry for entry in train) and not len(record):
        raise ValueError(f'the run in {work_dir} logged nothing of PFB: was PFBHook in its config?')
    configs = sorted(work_dir.glob('*/vis_data/config.py'))
    config = Config.fromfile(configs[-1]) if configs else Config()  # a runner may be built without
    sentences = [_progress(train, config.get('train_cfg') or {})]
    if not written:
        sentences.append(
            f'There is no {RECORD_NAME} yet; it is written with the first checkpoint. Until then '
            'nothing is known of single images and classes.'
        )
    images = None
    try:
        images = ImageSet(config)
    except (OSError, AssertionError, KeyError, ValueError) as error:
        sentences.append(
            'The data set of the config cannot be read from here, so no image is shown '
            f'({type(error).__name__}: {error}). Paths are as in the config: run the report where '
            'the training was run.'
        )
    settings = config.get('model', {}).get('pfb', {})
    content = page.page(
        f'What was skipped: {work_dir.resolve().name}',
        sentences,
        page.table(_numbers(train, val, record)),
        _over_the_run(train),
        *_sections_of(record, images, num_images),
        page.section(
            'The run',
            str(work_dir),
            page.table((f'pfb.{name}', value) for name, value in settings.items()),
            page.folded('The whole config', config.pretty_text),
        ),
    )
    file = Path(work_dir / 'pruning_report' if out_dir is None else out_dir, 'index.html')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding='utf-8')
    return file


def _progress(train: list[dict], loop: dict) -> str:
    unit, key = ('epoch', 'epoch') if 'max_epochs' in loop else ('iteration', 'step')
    done = max((entry[key] for entry in train if key in entry), default=0)
    return f'Logged up to {unit} {done} of {loop.get("max_epochs", loop.get("max_iters"))}.'


def _numbers(train: list[dict], val: list[dict], record: SelectionRecord) -> Iterator[tuple]:
    """What the head of the page says."""
    if len(record):
        yield 'Share of the images kept while pruning', f'{record.kept_share:.0%}'
        never = int((record.kept == 0).sum())
        yield 'Images that were never kept', f'{never:,} of {len(record):,} looked at'
    for entry in [entry for entry in train if 'pfb/time_saved' in entry][-1:]:
        yield 'Share of the wall clock saved', f'{entry["pfb/time_saved"]:.1%}'
    for name, key in METRICS.items():
        if val and key in val[-1]:
            yield f'{name} of the last validation', f'{val[-1][key]:.2f}'


def _over_the_run(train: list[dict]) -> str:
    figure, axes = _figure()
    for name, color, value_of in (
        ('kept', _GREY, lambda entry: entry['pfb/kept'] / max(entry['pfb/candidates'], 1)),
        ('time_saved', _BLUE, lambda entry: entry['pfb/time_saved']),
    ):
        entries = [entry for entry in train if f'pfb/{name}' in entry]
        steps, values = [entry['step'] for entry in entries], [*map(value_of, entries)]
        axes.plot(steps, values, color=color, lw=2, label=name.replace('_', ' '))
    axes.set(xlabel='iteration', xlim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    return page.section(
        'Over the run',
        'Share of the images trained on in each interval of the log, and time saved since the '
        'start against as many full iterations of this run.',
        _png(figure, axes),
    )


def _sections_of(
    record: SelectionRecord, images: ImageSet | None, num_images: int
) -> Iterator[str]:
    """What the record tells of scores, classes and images."""
    if np.isfinite(record.mean_score).any():
        yield _scores(record)
    if record.class_counts.any():
        yield _classes(record)
    kept, candidates, score = record.kept, record.candidates, record.mean_score
    dropped, paths, places = candidates - kept, record.paths, record.places.tolist()
    words = words_for(record.score_name or '')

    def picture(row: int) -> Picture:
        path, place = paths[row], places[row]
        remark = f'kept {kept[row]} of {candidates[row]}'
        remark += f'; {words.label} {score[row]:.3g}' if np.isfinite(score[row]) else ''
        if images is None or place not in range(len(images.paths)) or images.paths[place] != path:
            return Picture(None, path, remark)
        return images.entry(place, remark)

    # Between images of equal counts: those that the criterion seeks first, or last.
    wanted, unscored = words.sought * score, np.isnan(score)
    first = '' if unscored.all() else f', the {words.first} among them first'
    for heading, explanation, order in (
        (
            'Most often kept',
            f'With their labels{first}.',
            np.lexsort((-wanted, unscored, dropped, -kept)),
        ),
        (
            'Most often dropped',
            'Are these the images you could do without?',
            np.lexsort((wanted, unscored, kept, -dropped)),
        ),
    ):
        shown = track(order[:num_images], 'Drawing images')
        yield page.section(heading, explanation, page.gallery(map(picture, shown)))


def _scores(record: SelectionRecord) -> str:
    words, scored = words_for(record.score_name), np.isfinite(record.mean_score)
    score, kept = record.mean_score[scored], record.kept[scored]
    score = score.clip(*np.quantile(score, [0.005, 0.995]))  # the last bins hold what lies beyond
    figure, axes = _figure()
    axes.hist(
        [score, score],
        bins=40,
        weights=[kept, record.candidates[scored] - kept],
        stacked=True,
        color=[_BLUE, _GREY],
        label=['kept', 'dropped'],
    )
    axes.set(yticks=[], xlabel=words.label)
    return page.section(
        f'Scores of the images: {words.label}',
        f'Mean {words.label} of each image over the run, counted as often as the image was kept or '
        'dropped. The wider the spread, the more there is to choose by.',
        _png(figure, axes),
    )


def _classes(record: SelectionRecord) -> str:
    """The classes whose shares in dropped and in kept images differ most."""
    counts = record.class_counts
    dropped, kept = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-np.abs(kept - dropped), kind='stable')[:_MOST_CLASSES]
    counted = {'pixels': 'labelled pixels', 'images': 'images'}[record.class_unit]
    rows = ((record.classes[c], f'{dropped[c]:.2%}', f'{kept[c]:.2%}') for c in order)
    return page.section(
        'Classes in kept and dropped images',
        f'Share of each class among the {counted}, while images were being looked at. The greatest '
        'differences come first.',
        page.table(rows, ('class', 'in dropped images', 'in kept images')),
    )


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 3), layout='constrained')
    axes = figure.add_subplot()
    axes.spines[['top', 'right']].set_visible(False)
    return figure, axes


def _png(figure: Figure, axes: Axes) -> str:
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=180)
    return page.plot(buffer.getvalue())
