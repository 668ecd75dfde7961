"""The report of a run: one page that needs no other file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..progress import track
from . import page, plots
from .images import ImageSet
from .page import Picture
from .record import SelectionRecord
from .run import RunFiles
from .scalars import METRICS
from .scores import words_for


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
    run = RunFiles(work_dir)
    if not any('pfb/kept' in entry for entry in run.train) and not len(run.record):
        raise ValueError(f'the run in {work_dir} logged nothing of PFB: was PFBHook in its config?')
    out_dir = run.work_dir / 'pruning_report' if out_dir is None else Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    images = _image_set(run)
    content = page.page(
        f'What was skipped: {run.work_dir.resolve().name}',
        _status(run),
        page.tiles(_numbers(run)),
        page.notes(run.notes),
        page.columns(*_figures(run)),
        *(_galleries(run.record, images, num_images) if len(run.record) else ()),
        _origin(run),
    )
    (out_dir / 'index.html').write_text(content, encoding='utf-8')
    return out_dir / 'index.html'


def _status(run: RunFiles) -> str:
    unit, done, length = 'iteration', run.iteration, run.max_iters
    if length is None:
        unit, done, length = 'epoch', run.epoch, run.max_epochs
    if done is None or length is None:
        return f'{run.iteration:,} iterations logged'
    if done >= length:
        return f'Finished after {length:,} {unit}s'
    return f'{unit.capitalize()} {done:,} of {length:,}: the run is still going or was interrupted'


def _numbers(run: RunFiles) -> dict[str, str]:
    """What the head of the page says."""
    numbers, record = {}, run.record
    if len(record):
        numbers['of the images kept while pruning'] = f'{record.kept_share:.0%}'
    _, saved = run.column('pfb/time_saved')
    if len(saved):
        numbers['of the wall clock saved'] = f'{saved[-1]:.1%}'
    if len(record):
        never = int((record.kept == 0).sum())
        numbers[f'of {len(record):,} images looked at were never kept'] = f'{never:,}'
    for name, key in METRICS.items():
        if run.val and key in run.val[-1]:
            numbers[f'{name} of the last validation'] = f'{run.val[-1][key]:.2f}'
    return numbers


def _figures(run: RunFiles) -> list[str]:
    steps, kept = run.column('pfb/kept')
    _, candidates = run.column('pfb/candidates')
    share = steps, kept / np.maximum(candidates, 1)
    figures = [
        _figure(
            'Over the run',
            'Share of the images trained on in each interval of the log, and time saved '
            'since the start against as many full iterations of this run.',
            plots.over_the_run(share, run.column('pfb/time_saved')),
        )
    ]
    record = run.record
    if np.isfinite(record.mean_score).any():
        words = words_for(record.score_name)
        explanation = (
            f'Mean {words.label} of each image over the run, counted as often as the image was '
            'kept or dropped. The wider the spread, the more there is to choose by.'
        )
        figures.append(_figure(words.heading, explanation, plots.scores(record, words)))
    if record.class_counts.any():
        counted = {'pixels': 'labelled pixels', 'images': 'images'}[record.class_unit]
        explanation = (
            f'Share of each class among the {counted}, while images were being looked at. '
            'Where the grey bar is the longer one, a class was skipped more than others.'
        )
        png = plots.class_shares(record.classes, record.class_counts, counted)
        figures.append(_figure('Classes in kept and dropped images', explanation, png))
    return figures


def _figure(heading: str, explanation: str, png: bytes) -> str:
    return page.section(heading, explanation, page.plot(png, heading))


def _galleries(record: SelectionRecord, images: ImageSet | None, num_images: int) -> list[str]:
    kept, candidates, score = record.kept, record.candidates, record.mean_score
    dropped, paths, places = candidates - kept, record.paths, record.places.tolist()
    words = words_for(record.score_name or '')

    def show(order: np.ndarray) -> str:
        pictures = []
        for i in track(order[:num_images], 'Drawing images'):
            remark = f'kept {kept[i]} of {candidates[i]}'
            remark += f'; {words.label} {score[i]:.3g}' if np.isfinite(score[i]) else ''
            pictures.append(_picture(images, places[i], paths[i], remark))
        return page.gallery(pictures)

    # Between images of equal counts: those that the criterion seeks first, or last.
    wanted, unscored = words.sought * score, np.isnan(score)
    truth = 'the ground truth drawn over them' if images is None else images.truth
    order = '' if unscored.all() else f'the {words.first} among them first, '
    return [
        page.section(
            'Most often kept',
            f'{order}with {truth}.'.capitalize(),
            show(np.lexsort((-wanted, unscored, dropped, -kept))),
        ),
        page.section(
            'Most often dropped',
            'Are these the images you could do without?',
            show(np.lexsort((wanted, unscored, kept, -dropped))),
        ),
    ]


def _image_set(run: RunFiles) -> ImageSet | None:
    if run.config is None:
        return None
    try:
        return ImageSet(run.config)
    except (OSError, AssertionError, KeyError, ValueError) as error:
        run.notes.append(
            'The data set of the config cannot be read from here, so no image is shown '
            f'({type(error).__name__}: {error}). Paths are as in the config: run the report where '
            'the training was run.'
        )
        return None


def _picture(images: ImageSet | None, place: int, path: str, remark: str) -> Picture:
    if images is None:
        return Picture(None, path, remark)
    gone = Picture(None, path, f'{remark}; its file is not there any more')
    if not 0 <= place < len(images.paths) or images.paths[place] != path:
        return gone
    try:
        return images.entry(place, remark)
    except OSError:
        return gone


def _origin(run: RunFiles) -> str:
    checkpoint = '-' if run.checkpoint is None else run.checkpoint.name
    values = {'Work dir': str(run.work_dir), 'Newest checkpoint': checkpoint, **run.versions}
    config = ''
    if run.config is not None:
        pfb = run.config.get('model', {}).get('pfb', {})
        values |= {f'pfb.{name}': str(value) for name, value in pfb.items()}
        config = page.folded('The whole config', run.config.pretty_text)
    return page.section('The run', 'What it was made with.', page.facts(values), config)
