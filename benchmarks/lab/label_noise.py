"""Whether a run chased wrong labels, where it is known which ones they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pfb_mmseg.report import SelectionRecord


class KeptRates(NamedTuple):
    """How often images were kept of the times that they were candidates, in [0, 1].

    Attributes:
        wrong: of those with the labels of another image; NaN if none was a candidate.
        right: of all others, likewise.
    """

    wrong: float
    right: float


def kept_rates(record: SelectionRecord, infos: Mapping[str, dict]) -> KeptRates:
    """What a run made of the labels that :class:`WrongLabelsMixin` exchanged.

    A criterion that does not see labels keeps both alike; one that chases wrong ones has a higher
    rate for these::

        images = ImageSet(config)
        infos = dict(zip(images.paths, images.infos))
        kept_rates(SelectionRecord.load(f'{work_dir}/{RECORD_NAME}'), infos)

    Args:
        record: of the run.
        infos: what the data set knows of each image, by path; wrong labels stand under
            ``labels_of``.

    Raises:
        KeyError: the record is of another data set.
    """
    wrong = np.array(['labels_of' in infos[path] for path in record.paths], dtype=bool)
    return KeptRates(*(_rate(record, rows) for rows in (wrong, ~wrong)))


def _rate(record: SelectionRecord, rows: np.ndarray) -> float:
    candidates = record.candidates[rows].sum()
    return float(record.kept[rows].sum() / candidates) if candidates else float('nan')
