"""Loads the data of a config as training does, and says in plain words what is wrong with them."""

from __future__ import annotations

import inspect
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
_NOT_LOADED = 'cannot be loaded'
_LEFT_OUT = 'are left out: the pipeline returns None'


def check_config(
    config: Config, num_read: int | None = 200
) -> tuple[list[str], list[str], list[str]]:
    """Check the data sets of a config.

    Each data set is built as the config says, and its samples run through its own pipeline. The
    sizes of image and labels are compared as they are loaded. Label values are read after the
    loaders and the user's own transforms, so that a random crop hides nothing.

    Args:
        config: any with data loaders.
        num_read: number of samples of each data set to load, evenly spread; more are loaded while
            all labels are of one class. None loads all. That every file is there is always checked.

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
        # What was found: its examples, by whether it is a problem and a sentence's end.
        self._found: dict[tuple[bool, str], list[str]] = {}
        self._values: set[int] = set()  # of all labels

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
        else:
            self._check_samples(dataset, num_read)

    def _complain(self, sentence: str) -> None:
        self.bad.append(f'{self.part}: {sentence}')

    def _check_samples(self, dataset: Any, num_read: int | None) -> None:
        self._info, self._steps = (lambda index: {}), [dataset.__getitem__]
        # A data set that makes its samples in another way is asked for them as a whole.
        if getattr(type(dataset), 'prepare_data', None) is BaseDataset.prepare_data:
            self._info = dataset.get_data_info
            self._steps = [dataset.get_data_info, *dataset.pipeline.transforms]
        self._last_own = max(i for i, step in enumerate(self._steps) if not _augments(step))
        # Labels are in [0, num_values) or ignored, as the head's loss has it; 0: nobody tells.
        classes = list(getattr(dataset, 'metainfo', {}).get('classes') or ())
        self._num_values = self._head.get('num_classes') or len(classes)
        if 1 in (self._num_values, self._head.get('out_channels')):
            self._num_values = 2  # one channel tells two classes apart
        self._ignored = {self._head.get('ignore_index', 255)}
        self._needs_all = getattr(dataset, 'test_mode', False)  # else MMEngine takes another sample

        num, loaded, missing = len(dataset), 0, self._missing_files(dataset)
        spread = np.linspace(0, num - 1, min(num_read or num, num)).astype(int).tolist()
        order = dict.fromkeys([*spread, *range(num)])
        for index in track(order, f'Loading samples ({self.part})', len(spread)):
            # The rest may hold the other classes, where the samples so far hold one alone.
            one_class = len(self._values - self._ignored) < 2 <= self._num_values and self._values
            if loaded >= len(spread) and (not one_class or any(bad for bad, _ in self._found)):
                break
            if index not in missing:
                info, loaded = self._info(index), loaded + 1
                name = info.get('seg_map_path') or info.get('img_path') or f'sample {index}'
                for bad, what, detail in self._findings(index):
                    self._found.setdefault((bad, what), []).append(name + detail)
        for (bad, what), names in self._found.items():
            strange = ', '.join(map(str, sorted(filter(self._is_strange, self._values))[:10]))
            nothing_left = what == _LEFT_OUT and len(names) == loaded
            (self.bad if bad or nothing_left else self.advice).append(
                f'{self.part}: {len(names):,} of {loaded:,} samples {what.format(strange)}, '
                f'{names[0]} for example.'
            )
        if self._values and not self.bad:
            self._judge_classes(classes, loaded)
        if not self.bad:
            self.good.append(f'{self.part}: {num:,} samples, {loaded:,} loaded, all in order.')

    def _missing_files(self, dataset: Any) -> set[int]:
        """Complain of files that are not there; returns the samples that need them."""
        missing: dict[str, list[int]] = {}
        for index in range(len(dataset)):
            for key, path in self._info(index).items():
                if key.endswith('_path') and isinstance(path, str) and not os.path.isfile(path):
                    missing.setdefault(key, []).append(index)
        needed: set[int] = set()
        for key, indices in missing.items():
            # What loads all the same needs no file: it is made by code, or lies in an archive.
            if any(what.startswith(_NOT_LOADED) for _, what, _ in self._findings(indices[0])):
                needed.update(indices)
                path = Path(self._info(indices[0])[key])
                self._complain(
                    f'{len(indices):,} of {len(dataset):,} samples lack the file of their {key}, '
                    f'{path} for example. {_around(path)}'
                )
        return needed

    def _findings(self, index: int) -> Iterator[tuple[bool, str, str]]:
        """Run the pipeline; tells whether it is a problem, what is the matter, and a detail."""
        results, image, labels, values = index, None, None, set()
        for number, step in enumerate(self._steps):
            try:
                results = step(results)
            except Exception as error:  # whatever it is, training would end with it
                name = getattr(step, '__name__', type(step).__name__)
                yield True, f'{_NOT_LOADED}: {name} raises {type(error).__name__}', f' ({error})'
                return
            if results is None:
                yield self._needs_all, _LEFT_OUT, ''
                return
            last_image, found = _image_and_labels(results)
            last_labels = None if found is None else found.shape
            if found is not None and (labels is None or number <= self._last_own):
                values = set(np.unique(found).tolist())
            image, labels = image or last_image, labels or last_labels
        if labels is None:
            truth = results.get('data_samples', results).keys()
            if self.part != 'test' and not any(name.startswith('gt_') for name in truth):
                yield True, 'come without labels: the pipeline loads none', ''
            return
        if len(labels) > 2:
            yield True, 'have labels in several channels, not one class index a pixel', ''
            return
        self._values |= values
        if len(labels) == 2 and labels != image:
            yield True, 'have labels of another size than their image', ''
        elif len(labels) == 2 and self.part == 'train' and last_labels != last_image:
            yield True, 'leave the pipeline with labels of another size than their image', ''
        if any(map(self._is_strange, values)):
            meant = f'0 to {self._num_values - 1} and {max(self._ignored)} (ignored)'
            yield True, f'have the labels {{}} once loaded, but only {meant} mean anything', ''
        elif values <= self._ignored:
            yield False, 'have no label that is not ignored', ''

    def _is_strange(self, value: int) -> bool:
        in_range = 0 <= value < self._num_values or self._num_values == 0
        return not in_range and value not in self._ignored

    def _judge_classes(self, classes: list, loaded: int) -> None:
        found = self._values - self._ignored
        names = [*classes, *range(len(classes), self._num_values)]
        never = [str(names[value]) for value in range(self._num_values) if value not in found]
        if not found or len(found) == 1 < self._num_values:
            only = min(found or self._ignored)
            self._complain(
                f'all labels of {loaded:,} samples are {only}{" or" if found else ", which is"} '
                'ignored: there is nothing to learn.'
            )
        elif never:
            self.advice.append(
                f'{self.part}: of {self._num_values} classes these never occur in {loaded:,} '
                f'samples: {_some(never)}.'
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
    """Why a data set finds nothing: what is not there, and what is there instead."""
    root, prefixes = leaf.get('data_root') or '', leaf.get('data_prefix') or {}
    prefixes = prefixes if isinstance(prefixes, dict) else {'data_prefix': prefixes}
    wanted = {**prefixes, 'ann_file': leaf.get('ann_file') or ''}
    absent = {key: Path(root, path) for key, path in wanted.items()}
    absent = {key: path for key, path in absent.items() if not path.exists()}
    for key, path in absent.items():
        yield f'{key}, {path}, is missing. {_around(path)}'
    kind = DATASETS.get(leaf['type']) if isinstance(leaf['type'], str) else leaf['type']
    if absent or wanted['ann_file'] or 'img_path' not in prefixes or kind is None:
        return
    default = inspect.signature(kind).parameters.get('img_suffix')
    if suffix := leaf.get('img_suffix', default and default.default):
        folder = Path(root, prefixes['img_path'])
        yield f'no file in {folder} ends in img_suffix={suffix!r}. {_around(folder / suffix)}'


def _around(path: Path) -> str:
    """What there is instead of a missing file or folder."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    held = sorted(entry.name for entry in parent.iterdir())
    return f'{parent}{os.sep} is there and holds {_some(held) or "nothing"}.'


def _some(names: list[str]) -> str:
    return ', '.join(names[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
