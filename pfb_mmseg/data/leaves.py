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


def build_without_pipeline(leaf: dict) -> Any:
    """A data set of MMEngine that knows its samples, but not how to load them; it may be empty."""
    dataset = DATASETS.build({**leaf, 'pipeline': [], 'lazy_init': True})
    dataset.serialize_data = False  # an empty one cannot be serialized
    dataset.full_init()
    return dataset
