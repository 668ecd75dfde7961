"""The data sets that a config is made of, one by one and without their pipelines."""

from __future__ import annotations

from typing import Any

from mmseg.registry import DATASETS


def leaf_configs(dataset: dict) -> list[dict]:
    """The data sets inside ConcatDataset, RepeatDataset and the like, or the one there is."""
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    if not inner:
        return [dataset]
    return [leaf for part in inner for leaf in leaf_configs(part)]


def build_lazily(leaf: dict, pipeline: list | None = None) -> Any:
    """A data set that has not looked for its files yet, with another pipeline (none)."""
    return DATASETS.build({**leaf, 'pipeline': pipeline or [], 'lazy_init': True})
