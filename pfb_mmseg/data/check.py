"""Loads the data of a config as training does, and says in plain words what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from ..progress import track
from .leaves import leaf_configs

_LIBRARIES = ('mmcv', 'mmseg', 'mmdet', 'mmpretrain')
# What may be the matter with a sample, as the end of a sentence.
_NOT_LOADED = 'cannot be loaded'
_LEFT_OUT = 'are left out: the pipeline returns None'
_UNLABELLED = 'come without labels: the pipeline loads none'
_IGNORED = 'have no label that is not ignored'
_STRANGE = 'have the labels {strange} once loaded, but only {meant} mean anything'


def check_config(
    config: Config, num_read: int | None = 200
) -> tuple[list[str], list[str], list[str]]:
    """Check the data sets of a config.

    Each data set is built as the config says, and its samples run through its own pipeline. The
    sizes of image and labels are compared as they are loaded. Label values are read after the
    loaders and the user's own transforms, so that a random crop hides nothing.

    Args:
        config: any with data loaders.
        num_read: number of samples of each data set to load, evenly spread; None loads all. That
            every file is there is always checked.

    Returns:
        What is in order, what is a problem, and what else is good to know; a sentence each.
    """
    init_default_scope(config.get('default_scope', 'mmseg'))
    good, bad, advice, seen = [], [], [], []
    for part in ('train', 'val', 'test'):
        if not config.get(f'{part}_dataloader'):
            continue
        dataset, num_bad = config[f'{part}_dataloader']['dataset'], len(bad)
        for leaf in leaf_configs(dataset):
            if leaf not in seen:  # the test data are the validation data, mostly
                seen.append(leaf)
                check = _Check(config.get('model') or {}, part, leaf)
                check.run(num_read)
                good += check.good
                bad += check.bad
                advice += check.advice
        if dataset not in seen and len(bad) == num_bad:
            seen.append(dataset)
            try:
                DATASETS.build(dataset)[0]
            except Exception as error:  # whatever it is, training would end with it
                bad.append(f'{part}: {dataset["type"]} gives no sample: {_words(error)}')
    if not seen:
        bad.append('The config has no train_dataloader, val_dataloader or test_dataloader.')
    return good, bad, advice


class _Check:
    """Of one data set."""

    def __init__(self, model: dict, part: str, leaf: dict) -> None:
        self.part = part
        self.leaf = leaf
        self.good: list[str] = []
        self.bad: list[str] = []
        self.advice: list[str] = []
        head = model.get('decode_head') or model.get('head') or {}
        self._head = head[-1] if isinstance(head, (list, tuple)) else head

    def run(self, num_read: int | None) -> None:
        try:
            dataset = DATASETS.build(self.leaf)
            if len(dataset) == 0:
                self._complain('the data set is empty.')
        except Exception as error:  # whatever it is, training would end with it
            self._complain(f'{self.leaf["type"]} cannot be built: {_words(error)}')
        if self.bad:
            for hint in _hints(self.leaf):
                self._complain(hint)
            return
        self._look_at(dataset)
        num, missing, found = len(dataset), self._missing_files(len(dataset)), {}
        spread = {*np.linspace(0, num - 1, min(num_read or num, num)).astype(int).tolist()}
        loaded = sorted(spread - missing)
        for index in track(loaded, f'Loading samples ({self.part})'):
            if fault := self._fault(index):
                what, detail = fault
                found.setdefault(what, []).append(self._name(index) + detail)
        self._judge_samples(found, len(loaded))
        if self._values and not self.bad:
            self._judge_classes(len(loaded))
        if not self.bad:
            self.good.append(f'{self.part}: {num:,} samples, {len(loaded):,} loaded, all in order.')

    def _complain(self, sentence: str) -> None:
        self.bad.append(f'{self.part}: {sentence}')

    def _look_at(self, dataset: Any) -> None:
        """How the data set makes a sample, and which labels the head's loss can read."""
        self._info, self._steps = (lambda index: {}), [dataset.__getitem__]
        # A data set that makes its samples in another way is asked for them as a whole.
        if getattr(type(dataset), 'prepare_data', None) is BaseDataset.prepare_data:
            self._info = dataset.get_data_info
            self._steps = [dataset.get_data_info, *dataset.pipeline.transforms]
        self._last_own = max(i for i, step in enumerate(self._steps) if not _augments(step))
        # Labels are in [0, num_values) or ignored; 0: nobody tells.
        self._classes = list(getattr(dataset, 'metainfo', {}).get('classes') or ())
        self._num_values = self._head.get('num_classes') or len(self._classes)
        if 1 in (self._num_values, self._head.get('out_channels')):
            self._num_values = 2  # one channel tells two classes apart
        self._ignored = self._head.get('ignore_index', 255)
        self._values: set[int] = set()  # of all labels
        # MMEngine takes another sample for one that is left out, but not in tests.
        self._needs_all = getattr(dataset, 'test_mode', False)

    def _name(self, index: int) -> str:
        info = self._info(index)
        return info.get('seg_map_path') or info.get('img_path') or f'sample {index}'

    def _missing_files(self, num: int) -> set[int]:
        """Complain of files that are not there; returns the samples that need them."""
        missing: dict[str, list[int]] = {}
        for index in range(num):
            for key, path in self._info(index).items():
                if key.endswith('_path') and isinstance(path, str) and not os.path.isfile(path):
                    missing.setdefault(key, []).append(index)
        needed: set[int] = set()
        for key, indices in missing.items():
            fault = self._fault(indices[0])
            # What loads all the same needs no file: it is made by code, or lies in an archive.
            if fault and fault[0].startswith(_NOT_LOADED):
                needed.update(indices)
                path = Path(self._info(indices[0])[key])
                self._complain(
                    f'{len(indices):,} of {num:,} samples lack the file of their {key}, '
                    f'{path} for example. {_around(path)}'
                )
        return needed

    def _fault(self, index: int) -> tuple[str, str] | None:
        """Run the pipeline; returns what is the matter, and a detail. None: nothing is."""
        results, image, labels, values = index, None, None, set()
        for number, step in enumerate(self._steps):
            try:
                results = step(results)
            except Exception as error:  # whatever it is, training would end with it
                name = getattr(step, '__name__', type(step).__name__)
                return f'{_NOT_LOADED}: {name} raises {type(error).__name__}', f' ({error})'
            if results is None:
                return _LEFT_OUT, ''
            last_image, found = _image_and_labels(results)
            last_labels = None if found is None else found.shape
            if found is not None and (labels is None or number <= self._last_own):
                values = set(np.unique(found).tolist())
            image, labels = image or last_image, labels or last_labels
        if labels is None:
            truth = results.get('data_samples', results).keys()
            needed = self.part != 'test' and not any(name.startswith('gt_') for name in truth)
            return (_UNLABELLED, '') if needed else None
        if len(labels) > 2:
            return 'have labels in several channels, not one class index a pixel', ''
        self._values |= values
        if len(labels) == 2 and labels != image:
            return 'have labels of another size than their image', ''
        if len(labels) == 2 and self.part == 'train' and last_labels != last_image:
            return 'leave the pipeline with labels of another size than their image', ''
        if any(map(self._is_strange, values)):
            return _STRANGE, ''
        return (_IGNORED, '') if values <= {self._ignored} else None

    def _is_strange(self, value: int) -> bool:
        return self._num_values > 0 and not (
            0 <= value < self._num_values or value == self._ignored
        )

    def _judge_samples(self, found: dict[str, list[str]], loaded: int) -> None:
        strange = sorted(filter(self._is_strange, self._values))[:10]
        told = dict(
            strange=', '.join(map(str, strange)),
            meant=f'0 to {self._num_values - 1} and {self._ignored} (ignored)',
        )
        for what, names in found.items():
            spare = what == _LEFT_OUT and len(names) < loaded and not self._needs_all
            (self.advice if spare or what == _IGNORED else self.bad).append(
                f'{self.part}: {len(names):,} of {loaded:,} samples {what.format(**told)}, '
                f'{names[0]} for example.'
            )

    def _judge_classes(self, loaded: int) -> None:
        found, num = self._values - {self._ignored}, self._num_values
        names = [*self._classes, *range(len(self._classes), num)]
        never = [str(names[value]) for value in range(num) if value not in found]
        if not found or len(found) == 1 < num:
            only = f'{min(found)} or' if found else f'{self._ignored}, which is'
            self._complain(
                f'all labels of {loaded:,} samples are {only} ignored: there is nothing to learn. '
                '`pfb check --read 0` looks at all samples.'
            )
        elif never:
            self.advice.append(
                f'{self.part}: of {num} classes these never occur in {loaded:,} samples: '
                f'{_some(never)}.'
            )


def _augments(step: Callable) -> bool:
    """Whether it is a library's transform that loads nothing."""
    kind = type(step)
    return kind.__module__.partition('.')[0] in _LIBRARIES and not kind.__name__.startswith('Load')


def _image_and_labels(results: dict) -> tuple[tuple[int, ...] | None, np.ndarray | None]:
    """(H, W) of the image and its labels, before or after they are packed, as far as there are."""
    sample = results.get('data_samples')
    if sample is None:
        image = results.get('img')
        return None if image is None else np.shape(image)[:2], results.get('gt_seg_map')
    labels = None
    if 'gt_sem_seg' in sample and 'data' in sample.gt_sem_seg:  # MMDetection's lack the name
        labels = sample.gt_sem_seg.data.numpy()
        labels = labels[0] if len(labels) == 1 else labels
    elif 'gt_label' in sample:
        labels = sample.gt_label.numpy()
    return tuple(results['inputs'].shape[-2:]), labels


def _words(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'


def _hints(leaf: dict) -> Iterator[str]:
    """What there is where a data set looks for its files."""
    prefixes = leaf.get('data_prefix') or {}
    prefixes = prefixes if isinstance(prefixes, dict) else {'data_prefix': prefixes}
    for key, path in {**prefixes, 'ann_file': leaf.get('ann_file')}.items():
        path = Path(leaf.get('data_root') or '', path or '')
        if path.is_dir():
            yield f'{key}, {path}, holds {_content(path)}. Compare the suffixes of the config.'
        elif not path.exists():
            yield f'{key}, {path}, is missing. {_around(path)}'


def _around(path: Path) -> str:
    """What there is instead of a missing file or folder."""
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f'{there}{os.sep} is there and holds {_content(there)}.'


def _content(folder: Path) -> str:
    return _some(sorted(entry.name for entry in folder.iterdir())) or 'nothing'


def _some(names: list[str]) -> str:
    return ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
