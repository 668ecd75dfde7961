"""Which sample of the training data set a data sample is: its place in there, not its file."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from functools import cached_property
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from torch.utils.data import ConcatDataset as TorchConcatDataset

# Under this name a data sample tells its place, in its metainfo.
PLACE = 'pfb_place'
UNKNOWN = -1


class Places:
    """Numbers the samples of a data set, and finds the number of a data sample.

    The number follows from the data set alone, so it is the same in every process and in a resumed
    run: data sets that ConcatDataset joins are counted one after the other, and what RepeatDataset
    or ClassBalancedDataset repeats is one sample.

    MMEngine's data sets tell their transforms the index of each sample (``'sample_idx'``). The
    constructor puts a transform in front of theirs that turns it into the place, and has the
    packing transforms (those with ``meta_keys``) pack the place. Workers that run already, as with
    OpenMMLab's mmengine 0.10.7 and IterBasedTrainLoop, do not pack it; then a sample is found by
    its path, and by its ``sample_idx`` where the config packs that, if only one sample has them.

    Args:
        dataset: of the training data loader, wrapped or not.

    Attributes:
        num (int): samples in the data set, repeated ones counted once.
        of_index (np.ndarray): (len(dataset),) int64, place of the sample that each index of the
            data set stands for.
    """

    def __init__(self, dataset: Any) -> None:
        self.num = 0
        # By the identity of a data set: place of its first sample, and itself.
        self._leaves: dict[int, tuple[int, Any]] = {}
        self.of_index = self._count(dataset)

    def find(self, samples: Any) -> np.ndarray:
        """Places, (N,) int64, of the N samples that a call of ``loss`` was given.

        :data:`UNKNOWN` for what is no sample of the data set, such as pseudo-labelled images, and
        for what tells neither its place nor a path of its own, such as labels in one tensor.
        """
        return np.array([self._find(sample) for sample in samples], np.int64)

    def mark(self, samples: Any, indices: np.ndarray) -> None:
        """Tell the data samples of a batch their places, unless they know.

        ``indices``: (N,) of the data set. What is no list of N data samples is left as it is.
        """
        if not isinstance(samples, list) or len(samples) != len(indices):
            return
        for sample, place in zip(samples, self.of_index[indices].tolist(), strict=True):
            if hasattr(sample, 'set_metainfo') and not hasattr(sample, PLACE):
                sample.set_metainfo({PLACE: place})

    def _count(self, dataset: Any) -> np.ndarray:
        """(len(dataset),) places of a data set, whose transforms learn to tell them."""
        if not hasattr(dataset, '__len__'):
            return np.zeros(0, np.int64)
        if isinstance(dataset, (ConcatDataset, TorchConcatDataset)):
            return np.concatenate([self._count(part) for part in dataset.datasets])
        inner = getattr(dataset, 'dataset', None)
        if isinstance(inner, Sized) and (order := _order_within(dataset, inner)) is not None:
            _pack(dataset)
            return self._count(inner)[order]
        if id(dataset) not in self._leaves:  # or it is joined with itself
            self._leaves[id(dataset)] = self.num, dataset
            if isinstance(dataset, BaseDataset):
                transforms = _transforms(dataset)
                if transforms and not isinstance(transforms[0], _TellPlace):
                    transforms.insert(0, _TellPlace(self.num))
                _pack(dataset)
            self.num += len(dataset)
        return self._leaves[id(dataset)][0] + np.arange(len(dataset))

    def _find(self, sample: Any) -> int:
        place = getattr(sample, PLACE, None)
        if place is not None:
            return place
        key = getattr(sample, 'img_path', None), getattr(sample, 'sample_idx', None)
        return self._by_name.get(key, UNKNOWN)

    @cached_property
    def _by_name(self) -> dict[tuple, int]:
        """Places by path, by index within the data set, and by both."""
        places: dict[tuple, int] = {(None, None): UNKNOWN}
        for first, leaf in self._leaves.values():
            for index in range(len(leaf) if isinstance(leaf, BaseDataset) else 0):
                path = leaf.get_data_info(index).get('img_path')
                for key in {(path, None), (None, index), (path, index)}:
                    places[key] = UNKNOWN if key in places else first + index
        return places


class _TellPlace:
    """The first transform of a data set: notes the place of the sample."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, results: dict) -> dict:
        if 'sample_idx' in results:
            results[PLACE] = self.first + results['sample_idx']
        return results


def _order_within(wrapper: Any, inner: Sized) -> np.ndarray | None:
    """(len(wrapper),) index in the data set within for each of the wrapper; None if not known."""
    if isinstance(wrapper, RepeatDataset):
        return np.resize(np.arange(len(inner)), len(wrapper))
    for name in ('repeat_indices', 'indices'):  # ClassBalancedDataset; torch's Subset, KFoldDataset
        indices = getattr(wrapper, name, None)
        if isinstance(indices, Sequence) and len(indices) == len(wrapper):
            return np.asarray(indices)
    # MultiImageMixDataset: sample i, with others mixed into it.
    return np.arange(len(inner)) if len(wrapper) == len(inner) else None


def _transforms(owner: Any) -> list:
    pipeline = getattr(owner, 'pipeline', None)
    transforms = getattr(pipeline, 'transforms', pipeline)
    return transforms if isinstance(transforms, list) else []


def _pack(dataset: Any) -> None:
    """Let the packing transforms of a data set pack the place."""
    for transform in _transforms(dataset):
        keys = getattr(transform, 'meta_keys', None)
        if isinstance(keys, (tuple, list)) and PLACE not in keys:
            transform.meta_keys = (*keys, PLACE)
