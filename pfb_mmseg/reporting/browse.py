"""A data set in the order of how common its images look, as a table and as pictures."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from . import page
from .files import write_atomically
from .images import ImageSet
from .page import Picture


def write_ranking(
    images: ImageSet, log_density: Tensor, out_dir: str | os.PathLike, num_images: int = 24
) -> tuple[Path, Path]:
    """Write ``ranking.csv`` (rank, path, log_density; rarest first) and ``index.html``.

    Args:
        images: M images.
        log_density: (M,), in their order; those without a finite one come last.
        out_dir: made if need be.
        num_images: in each of the two galleries, rarest and commonest.

    Returns:
        Paths of the two files.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths, density = list(images.infos), log_density.double().numpy()
    order = np.argsort(density, kind='stable')  # NaN last
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['rank', 'path', 'log_density'])
    writer.writerows((rank, paths[i], f'{density[i]:.4f}') for rank, i in enumerate(order, start=1))
    write_atomically(out_dir / 'ranking.csv', text.getvalue().encode(errors='surrogateescape'))

    def show(chosen: np.ndarray) -> str:
        return page.gallery(
            [
                Picture(
                    images.picture(paths[i]),
                    PurePosixPath(paths[i].replace('\\', '/')).stem,
                    f'log density {density[i]:.1f}',
                )
                for i in chosen
            ]
        )

    scored = order[np.isfinite(density[order])]
    content = page.page(
        'How common the images look',
        f'{len(paths):,} images by their log density under the model, the ground truth drawn over '
        'them',
        page.section(
            'Rarest', 'Worth a look: new to the model, or broken.', show(scored[:num_images])
        ),
        page.section(
            'Most redundant',
            'The model has seen many like these.',
            show(scored[::-1][:num_images]),
        ),
    )
    write_atomically(out_dir / 'index.html', content.encode())
    return out_dir / 'ranking.csv', out_dir / 'index.html'
