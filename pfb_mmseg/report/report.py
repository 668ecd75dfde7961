"""The report of a run: one page and its plots."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ..progress import Tell, tell_nobody
from . import page, plots
from .counts import SelectionRecord
from .files import write_atomically
from .images import ImageSet
from .page import Picture
from .run import RunFiles
from .scalars import METRICS
from .scores import words_for

_CENTROIDS_SHOWN, _IMAGES_A_CENTROID = 6, 6
_MOST_GROUPS = 30


def write_report(
    work_dir: str | os.PathLike,
    out_dir: str | os.PathLike | None = None,
    num_images: int = 12,
    scan_seconds: float = 20,
    tell: Tell = tell_nobody,
) -> Path:
    """Write ``index.html``, which needs no other file, and its plots as PNG.

    Args:
        work_dir: of a run with PFBHook, finished or not.
        out_dir: None is ``<work_dir>/pruning_report``.
        num_images: in each gallery.
        scan_seconds: how long to look for the images closest to the busiest centroids; 0 leaves
            them out. A large data set is looked at in part.
        tell: is told what is being done, and how far it is.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: nothing was logged in ``work_dir``.
        ValueError: the run had no PFBHook.
    """
    tell('Reading the run', 0, None)
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
        galleries = _galleries(run, num_images, scan_seconds, tell)
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
    if record is not None and record.kept_share is not None:
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
    timeline = None if run.record is None else run.record.timeline
    if timeline is not None and timeline.scores.any():
        words = words_for(run.record.score_name)
        figures['scores'] = (
            plots.scores(timeline, words),
            words.heading,
            f'{words.label.capitalize()} of the candidates in the first, middle and last third of '
            'the pruned iterations. The wider the spread, the more there is to choose by.',
        )
    if timeline is not None and timeline.class_counts.any():
        counted = {'pixels': 'labelled pixels', 'images': 'images'}[run.record.class_unit]
        figures['class_share'] = (
            plots.class_shares(run.record.classes, timeline.class_counts.sum(axis=0), counted),
            'Classes in kept and dropped images',
            f'Share of each class among the {counted}, while images were being looked at. '
            'Where the grey bar is the longer one, a class was skipped more than others.',
        )
    if run.estimator:
        figures['centroids'] = (
            plots.centroid_usage(run.estimator['counts'].numpy(), run.estimator['idle'].numpy()),
            'What the centroids stand for',
            'Share of the kept images that joined each centroid. Grey: none in the last 200 '
            'updates. With one bar far above the others, the density tells images badly apart.',
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
    rows = [
        (name, f'{images:,}', f'{candidates:,}', f'{kept / candidates:.0%}')
        for name, images, candidates, kept in shown
    ]
    more = f' The {_MOST_GROUPS} most dropped of {len(groups)}.' if len(groups) > len(shown) else ''
    return [
        page.section(
            'Which groups were dropped most',
            'Images by their folder, or by their name up to the first underscore; how often they '
            f'were candidates, and how often kept.{more}',
            page.bars(
                ('', 'images', 'looked at', 'kept'),
                rows,
                [kept / candidates for _, _, candidates, kept in shown],
            ),
        )
    ]


def _galleries(run: RunFiles, num_images: int, scan_seconds: float, tell: Tell) -> list[str]:
    record = run.record
    kept, dropped = record.kept, record.candidates - record.kept
    paths, places = record.paths, record.places.tolist()
    score, words = record.mean_score, words_for(record.score_name or '')
    tell('Listing the images of the data set', 0, None)
    images = _image_set(run)
    drawn = itertools.count(1)

    def show(order: np.ndarray) -> str:
        pictures = []
        for i in order[:num_images]:
            remark = f'kept {record.kept[i]} of {record.candidates[i]}'
            remark += f'; {words.label} {score[i]:.3g}' if np.isfinite(score[i]) else ''
            pictures.append(_picture(images, places[i], paths[i], remark))
            tell('Drawing images', next(drawn), 2 * min(num_images, len(order)))
        return page.gallery(pictures)

    # Between images of equal counts: those that the criterion seeks first, or last.
    wanted, unscored = words.sought * score, np.isnan(score)
    truth = 'the ground truth drawn over them' if images is None else images.truth
    order = '' if unscored.all() else f'the {words.first} among them first, '
    parts = [
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
    if images is not None and run.estimator and scan_seconds > 0:
        try:
            parts += _closest(run, images, scan_seconds, tell)
        except (OSError, ValueError) as error:
            run.notes.append(f'The images closest to the centroids could not be found: {error}')
    return parts


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


def _closest(run: RunFiles, images: ImageSet, seconds: float, tell: Tell) -> list[str]:
    """A gallery of the images next to the centroids that stand for most (Eq. 7)."""
    from .scan import Scanner

    scanner = Scanner(run.config, run.checkpoint)
    places = np.random.default_rng(0).permutation(len(images.infos)).tolist()
    x = scanner.observe(
        [images.infos[place] for place in places],
        seconds=seconds,
        progress=lambda done: tell(f'Running the model, {seconds:g} s at most', done, len(places)),
    )
    counts = run.estimator['counts']
    busiest = counts.argsort(descending=True, stable=True)[:_CENTROIDS_SHOWN]
    distance = torch.cdist(run.estimator['centroids'][busiest].double(), x.double())
    rows = []
    for centroid, row in zip(busiest.tolist(), distance, strict=True):
        nearest = row.argsort(stable=True)[:_IMAGES_A_CENTROID].tolist()
        share = int(counts[centroid]) / max(int(counts.sum()), 1)
        pictures = [
            _picture(images, places[i], images.paths[places[i]], f'distance {row[i]:.3g}')
            for i in nearest
        ]
        heading = f'Centroid {centroid}: {share:.0%} of the kept images'
        rows.append(page.gallery(pictures, heading))
    random = '' if len(x) == len(places) else f' random ones of {len(places):,}'
    return [
        page.section(
            'Closest to the busiest centroids',
            f'Of {len(x):,}{random} images, as the model of {run.checkpoint.name} sees them '
            'without augmentation. They show what the network takes for common.',
            *rows,
        )
    ]


def _origin(run: RunFiles) -> str:
    checkpoint = '-' if run.checkpoint is None else run.checkpoint.name
    values = {'Work dir': str(run.work_dir), 'Newest checkpoint': checkpoint, **run.versions}
    pfb = {} if run.config is None else run.config.get('model', {}).get('pfb', {})
    values |= {f'pfb.{name}': str(value) for name, value in dict(pfb).items()}
    config = '' if run.config is None else page.folded('The whole config', run.config.pretty_text)
    return page.section('The run', 'What it was made with.', page.facts(values), config)
