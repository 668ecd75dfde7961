"""The scalars that MMEngine's LocalVisBackend wrote during a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

# What accuracy is called, and by which key validation logs it.
METRICS = {'mIoU': 'mIoU', 'top-1': 'accuracy/top1'}
_OURS = 'pfb/'


def read_scalars(work_dir: str | os.PathLike) -> tuple[list[dict], list[dict]]:
    """All that was logged in a work dir, of interrupted and resumed runs too.

    Args:
        work_dir: of a run with LocalVisBackend (mmseg's default).

    Returns:
        Training and validation entries, each with ``step`` (iteration) and ascending by it. Where a
        resumed run passed an iteration again, its values count.

    Raises:
        FileNotFoundError: nothing was logged there.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'no */vis_data/scalars.json in {work_dir}: is it the work dir of a run, and is '
            'LocalVisBackend among the vis_backends?'
        )
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    for file in files:  # named after the time of their start
        for line in file.read_text().splitlines(keepends=True):
            if not line.endswith('\n'):  # is being written, or was when the run was killed
                continue
            # The prefix is there with log_processor = dict(log_with_hierarchy=True).
            entry = {k.removeprefix('train/'): v for k, v in json.loads(line).items()}
            # Scalars of our hooks stand in a line of their own where a run ends between two entries
            # of LoggerHook.
            trained = 'loss' in entry or any(key.startswith(_OURS) for key in entry)
            (train if trained else val).setdefault(entry['step'], {}).update(entry)
    return [train[step] for step in sorted(train)], [val[step] for step in sorted(val)]
