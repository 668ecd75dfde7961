"""The report of a run: one page and its plots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..progress import track
from . import page, plots
from .images import ImageSet
from .page import Picture
from .record import SelectionRecord, write_atomically
from .run import RunFiles
from .scalars import METRICS
from .scores import words_for

_MOST_GROUPS = 30


def write_report(
    work_dir: str | os.PathLike, out_dir: str | os.PathLike | None = None, num_images: int = 12
) -> Path:
    """Write ``index.html``, which needs no other file, and its plots as PNG.

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
    if not any('pfb/kept' in entry for entry in run.train) and run.record is None:
        raise ValueError(f'the run in {work_dir} logged nothing of PFB: was PFBHook in its config?')
    out_dir = run.work_dir / 'pruning_report' if out_dir is None else Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)

    figures = _figures(run)
    for name, (png, *_) in figures.items():
        write_atomically(out_dir / f'{name}.png', png)
    sections = [
        page.section(heading, text, page.plot(png, heading))
        for png, heading, text in figures.values()
    ]
    galleries = []
    if run.record is not None and len(run.record):
        sections[2:2] = _groups(run.record)  # where the two columns come out even
        galleries = _galleries(run, num_images)
    content = page.page(
        f'What was skipped: {run.name}',
        _status(run),
        page.tiles(_numbers(run)),
        page.notes(run.notes),
        page.columns(*sections),
        *galleries,
        _origin(run),
    )
    write_atomically(out_dir / 'index.html', content.encode())
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
    if record is not None and len(record):
        numbers['of the images kept while pruning'] = f'{record.kept_share:.0%}'
    _, saved = run.column('pfb/time_saved')
    if len(saved):
        numbers['of the wall clock saved'] = f'{saved[-1]:.1%}'
    if record is not None and len(record):
        never = int((record.kept == 0).sum())
        numbers[f'of {len(record):,} images looked at were never kept'] = f'{never:,}'
    for name, key in METRICS.items():
        if run.val and key in run.val[-1]:
            numbers[f'{name} of the last validation'] = f'{run.val[-1][key]:.2f}'
    return numbers


def _figures(run: RunFiles) -> dict[str, tuple[bytes, str, str]]:
    """File name -> PNG, heading, explanation."""
    steps, kept = run.column('pfb/kept')
    _, candidates = run.column('pfb/candidates')
    figures = {
        'over_the_run': (
            plots.over_the_run(
                (steps, kept / np.maximum(candidates, 1)), run.column('pfb/time_saved')
            ),
            'Over the run',
            'Share of the images trained on in each interval of the log, and time saved '
            'since the start against as many full iterations of this run.',
        )
    }
    record = run.record
    if record is not None and np.isfinite(record.mean_score).any():
        words = words_for(record.score_name)
        figures['scores'] = (
            plots.scores(record, words),
            words.heading,
            f'Mean {words.label} of each image over the run, counted as often as the image was '
            'kept or dropped. The wider the spread, the more there is to choose by.',
        )
    if record is not None and record.class_counts.any():
        counted = {'pixels': 'labelled pixels', 'images': 'images'}[record.class_unit]
        figures['class_share'] = (
            plots.class_shares(record.classes, record.class_counts, counted),
            'Classes in kept and dropped images',
            f'Share of each class among the {counted}, while images were being looked at. '
            'Where the grey bar is the longer one, a class was skipped more than others.',
        )
    return figures


def group_of(paths: Sequence[str]) -> list[str]:
    """The group of each image: its folder or, if there is one only, its name up to the first '_'.

    For Cityscapes that is the city, for CamVid the sequence.
    """
    parts = [PurePosixPath(path.replace('\\', '/')) for path in paths]
    if len({part.parent for part in parts}) > 1:
        return [part.parent.name for part in parts]
    return [part.name.partition('_')[0] for part in parts]


def groups_by_kept_rate(record: SelectionRecord) -> list[tuple[str, int, int, int]]:
    """Name, images, candidates and kept of each group, most dropped first; empty if it has none.

    Groups say something only if there are several, with several images each.
    """
    names, index = np.unique(np.array(group_of(record.paths), dtype=object), return_inverse=True)
    if not 2 <= len(names) <= len(record) / 2:
        return []
    images = np.bincount(index)
    candidates = np.bincount(index, record.candidates).astype(int)
    kept = np.bincount(index, record.kept).astype(int)
    order = np.argsort(kept / candidates, kind='stable')
    return [(names[i], int(images[i]), int(candidates[i]), int(kept[i])) for i in order]


def _groups(record: SelectionRecord) -> list[str]:
    groups = groups_by_kept_rate(record)
    if not groups:
        return []
    shown = groups[:_MOST_GROUPS]
    shares = [kept / candidates for _, _, candidates, kept in shown]
    rows = [
        (name, f'{images:,}', f'{candidates:,}', f'{share:.0%}')
        for (name, images, candidates, _), share in zip(shown, shares, strict=True)
    ]
    more = f' The {_MOST_GROUPS} most dropped of {len(groups)}.' if len(groups) > len(shown) else ''
    return [
        page.section(
            'Which groups were dropped most',
            'Images by their folder, or by their name up to the first underscore; how often they '
            f'were candidates, and how often kept.{more}',
            page.bars(('', 'images', 'looked at', 'kept'), rows, shares),
        )
    ]


def _galleries(run: RunFiles, num_images: int) -> list[str]:
    record = run.record
    kept, candidates, score = record.kept, record.candidates, record.mean_score
    dropped, paths, places = candidates - kept, record.paths, record.places.tolist()
    words = words_for(record.score_name or '')
    images = _image_set(run)

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
    if not images.holds(place, path):
        return gone
    remark = '; '.join([*images.classes_of(place), remark])
    try:
        return Picture(images.picture(place), images.title(place), remark)
    except OSError:
        return gone


def _origin(run: RunFiles) -> str:
    checkpoint = '-' if run.checkpoint is None else run.checkpoint.name
    values = {'Work dir': str(run.work_dir), 'Newest checkpoint': checkpoint, **run.versions}
    pfb = {} if run.config is None else run.config.get('model', {}).get('pfb', {})
    values |= {f'pfb.{name}': str(value) for name, value in dict(pfb).items()}
    config = '' if run.config is None else page.folded('The whole config', run.config.pretty_text)
    return page.section('The run', 'What it was made with.', page.facts(values), config)
