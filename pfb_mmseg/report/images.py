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
        self._palette = np.zeros((0, 3), dtype=np.uint8)  # RGB
        self._classes: list[str] = []
        for leaf in leaf_configs(dataloader['dataset']):
            # What reads files, by MMCV's custom of naming; all that changes an image is left out.
            steps = [step for step in leaf.get('pipeline', []) if _name(step).startswith('Load')]
            steps = steps or [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
            dataset = build_without_pipeline(leaf)
            self.infos += [dataset.get_data_info(index) for index in range(len(dataset))]
            loaders = Compose(steps), Compose(without_annotations(steps))
            self._loaders += [loaders] * len(dataset)
            if palette := dataset.metainfo.get('palette'):
                self._palette = np.array(palette, dtype=np.uint8)
            # A data set may learn its classes from its files.
            self._classes = [str(one) for one in dataset.metainfo.get('classes') or self._classes]
        self.paths = [
            image_name(info.get('img_path'), place) for place, info in enumerate(self.infos)
        ]
        self._num_of_path = Counter(self.paths)

    def entry(self, place: int, remark: str) -> Picture:
        """For a gallery: picture, name, and the classes of the whole image before the remark.

        The name of a file with several samples is followed by the place. There is no picture where
        the file cannot be read.
        """
        path = self.paths[place]
        name = PurePosixPath(path.replace('\\', '/')).stem
        if self._num_of_path[path] > 1:
            name += f' [{place}]'
        found = self.infos[place].get('gt_label', ())
        # Of several tasks, each has its own.
        labels = [] if isinstance(found, dict) else np.atleast_1d(found).astype(int).tolist()
        known = range(len(self._classes))
        words = [self._classes[label] if label in known else str(label) for label in labels]
        remark = '; '.join([*words, remark])
        try:
            return Picture(self.picture(place), name, remark)
        except OSError:
            return Picture(None, name, f'{remark}; its file cannot be read')

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
        if labels is not None and len(self._palette):
            labels = cv2.resize(np.float32(labels), size, interpolation=cv2.INTER_NEAREST)
            known = (labels >= 0) & (labels < len(self._palette))
            paint = self._palette[np.where(known, labels, 0).astype(int)][..., ::-1]
            mixed = np.uint8(_SHADE * paint + (1 - _SHADE) * image)
            image = np.where(known[..., None], mixed, image)
        done, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 80])
        if not done:
            raise OSError(f'{self.paths[place]} cannot be encoded as JPEG')
        return data.tobytes()


def without_annotations(pipeline: list) -> list:
    """A pipeline for images that nobody has labelled."""
    return [step for step in pipeline if not _name(step).endswith('Annotations')]


def _name(step: dict) -> str:
    kind = step['type']
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]
