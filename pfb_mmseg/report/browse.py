"""A data set in the order of its images' scores, as a table and as pictures."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from ..progress import track
from . import page
from .images import ImageSet
from .scores import words_for


def write_ranking(
    images: ImageSet,
    score: Tensor,
    out_dir: str | os.PathLike,
    num_images: int,
    score_name: str,
) -> tuple[Path, Path]:
    """Write ``ranking.csv`` (rank, index in the data set, path, score) and ``index.html``.

    The images that a criterion of this score keeps come first: the rarest, or the hardest.

    Args:
        images: M images.
        score: (M,), in their order; those without a finite one come last.
        out_dir: made if need be.
        num_images: in each of the two galleries, of the first and of the last ones.
        score_name: what ``score`` is; heads its column.

    Returns:
        Paths of the two files.
    """
    table, html = Path(out_dir, 'ranking.csv'), Path(out_dir, 'index.html')
    table.parent.mkdir(parents=True, exist_ok=True)
    words, values = words_for(score_name), score.double().numpy()
    order = np.argsort(-words.sought * values, kind='stable')  # NaN last
    with table.open('w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['rank', 'index', 'path', score_name])
        for rank, i in enumerate(order, start=1):
            writer.writerow([rank, i, images.paths[i], f'{values[i]:.4f}'])
    scored = order[np.isfinite(values[order])]
    sections = []
    for superlative, ends in ((words.first, scored), (words.last, scored[::-1])):
        shown = track(ends[:num_images], 'Drawing images')
        entries = (images.entry(i, f'{words.label} {values[i]:.3g}') for i in shown)
        sections.append(page.section(superlative.capitalize(), '', page.gallery(entries)))
    sentence = f'{len(values):,} images by their {words.label} under the model, with their labels.'
    content = page.page(f'Images by their {words.label}', [sentence], *sections)
    html.write_text(content, encoding='utf-8')
    return table, html
