"""The images of a data set by their place in it, and how they look with their labels."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import PurePosixPath

import cv2
import numpy as np
from mmcv.transforms import Compose
from mmengine import fileio
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..data.leaves import build_without_pipeline, leaf_configs
from .page import Picture
from .record import image_name

_SHADE = 0.5  # of the labels over the image


class ImageSet:
    """Every sample of a data set, loaded without augmentation. It goes by its place, see
    :class:`Places`; several samples may be of one file.

    Args:
        config: of the run.
        part: ``'train'``, ``'val'`` or ``'test'``.

    Attributes:
        infos: list of dict, what the data set knows of each sample.
        paths: list of str, of each sample, see :func:`image_name`.
        palette: (C, 3) uint8, RGB.
        classes: list of str, what images or pixels are told apart by.
        truth: str, what is shown of the labels, in words.

    Raises:
        OSError, AssertionError: the data set does not find its files.
        ValueError: the config has no such data set.
    """

    def __init__(self, config: Config, part: str = 'train') -> None:
        dataloader = config.get(f'{part}_dataloader')
        if not dataloader:
            raise ValueError(f'the config has no {part}_dataloader')
        init_default_scope(config.get('default_scope', 'mmseg'))
        self.infos: list[dict] = []
        # What loads each image with its labels, and without.
        self._loaders: list[tuple[Compose, Compose]] = []
        self.palette = np.zeros((0, 3), dtype=np.uint8)
        self.classes: list[str] = []
        for leaf in leaf_configs(dataloader['dataset']):
            steps = _loading_steps(leaf.get('pipeline', []))
            loaders = Compose(steps), Compose(without_annotations(steps))
            dataset = build_without_pipeline(leaf)
            self.infos += [dataset.get_data_info(index) for index in range(len(dataset))]
            self._loaders += [loaders] * len(dataset)
            if palette := dataset.metainfo.get('palette'):
                self.palette = np.array(palette, dtype=np.uint8)
            # A data set may learn its classes from its files.
            self.classes = [str(one) for one in dataset.metainfo.get('classes') or self.classes]
        self.paths = [
            image_name(info.get('img_path'), place) for place, info in enumerate(self.infos)
        ]
        self._num_of_path = Counter(self.paths)
        self.truth = 'the ground truth drawn over them'
        if any('gt_label' in info for info in self.infos):
            self.truth = 'their classes beside their names'

    def title(self, place: int) -> str:
        """A short name; with the place, where the file has several samples."""
        path = self.paths[place]
        stem = PurePosixPath(path.replace('\\', '/')).stem
        return f'{stem} [{place}]' if self._num_of_path[path] > 1 else stem

    def entry(self, place: int, remark: str) -> Picture:
        """For a gallery: the picture, its title, and its classes in front of the remark."""
        remark = '; '.join([*self.classes_of(place), remark])
        return Picture(self.picture(place), self.title(place), remark)

    def classes_of(self, place: int) -> list[str]:
        """Names of the classes that an image as a whole is of; none for segmentation."""
        found = self.infos[place].get('gt_label', ())
        # Of several tasks, each has its own.
        labels = [] if isinstance(found, dict) else np.atleast_1d(found).astype(int).tolist()
        known = range(len(self.classes))
        return [self.classes[label] if label in known else str(label) for label in labels]

    def load(self, place: int) -> tuple[np.ndarray, np.ndarray | None]:
        """An image, (H, W, 3) uint8 in BGR, and its labels, (H, W), if it has any.

        Raises:
            OSError: its file cannot be read.
        """
        info = self.infos[place]
        labelled, bare = self._loaders[place]
        labels = info.get('seg_map_path')
        loader = labelled if labels is not None and fileio.exists(labels) else bare
        results = copy.deepcopy(info)
        if 'img' not in info:  # some data sets hold their images in memory
            results = loader(results)
        image = np.asarray(results['img'])
        if image.ndim == 2 or image.shape[2] != 3:
            image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
        if image.dtype != np.uint8:
            low, high = np.nanmin(image), np.nanmax(image)
            image = np.uint8((image - low) / max(high - low, 1e-12) * 255)
        return image, results.get('gt_seg_map')

    def picture(self, place: int, width: int = 240) -> bytes:
        """JPEG of an image with its ground truth drawn over it; ignored pixels stay bare."""
        image, labels = self.load(place)
        size = width, max(1, round(image.shape[0] * width / image.shape[1]))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if labels is not None and len(self.palette):
            labels = cv2.resize(np.float32(labels), size, interpolation=cv2.INTER_NEAREST)
            known = (labels >= 0) & (labels < len(self.palette))
            paint = self.palette[np.where(known, labels, 0).astype(int)][..., ::-1]
            mixed = np.uint8(_SHADE * paint + (1 - _SHADE) * image)
            image = np.where(known[..., None], mixed, image)
        done, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 80])
        if not done:
            raise OSError(f'{self.paths[place]} cannot be encoded as JPEG')
        return data.tobytes()


def without_annotations(pipeline: list) -> list:
    """A pipeline for images that nobody has labelled."""
    return [step for step in pipeline if not _type_name(step).endswith('Annotations')]


def _loading_steps(pipeline: list) -> list:
    """What reads files, by MMCV's custom of naming; all that changes an image is left out."""
    steps = [step for step in pipeline if _type_name(step).startswith('Load')]
    return steps or [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def _type_name(step: dict) -> str:
    kind = step['type']
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]
