"""Rare class sampling (DAFormer, Hoyer et al., CVPR 2022): a class is drawn, then its image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.dist import broadcast_object_list, get_dist_info, sync_random_seed
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor
from torch.utils.data import Sampler

from ..core.checks import check_bool, check_integer, check_keys, check_number
from ..core.draws import generator_of

# What in a pipeline is no class, in all of MMSegmentation.
_IGNORE = 255


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of each class in each image of a data set, where there are any.

    Attributes:
        num_images: N.
        image, label, pixels: (M,) int32, int32 and int64, ascending by image: so many pixels of
            this class are in this image.
    """

    num_images: int
    image: np.ndarray
    label: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, dataset: Any) -> ClassCounts:
        """Count them, with the transforms that load labels and none that changes an image.

        Args:
            dataset: a BaseSegDataset, or ConcatDataset or RepeatDataset of such.

        Raises:
            ValueError: an image comes without labels.
        """
        rows = [np.zeros((0, 3), dtype=np.int64)]
        for number, labels in enumerate(_label_maps(dataset)):
            pixels = np.bincount(labels.ravel(), minlength=_IGNORE + 1)
            pixels[_IGNORE] = 0
            found = pixels.nonzero()[0]
            rows.append(np.stack([np.full(len(found), number), found, pixels[found]], axis=1))
        image, label, pixels = np.concatenate(rows).T
        return cls(len(dataset), image.astype(np.int32), label.astype(np.int32), pixels)

    @classmethod
    def load(cls, path: Path) -> ClassCounts:
        with np.load(path, allow_pickle=False) as file:
            return cls(int(file['num_images']), file['image'], file['label'], file['pixels'])

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Runs that are killed here, or count at the same time, leave no half of it.
        part = path.with_name(f'{path.name}.{os.getpid()}')
        with open(part, 'wb') as file:
            np.savez(file, **vars(self))
        part.replace(path)


def class_probabilities(frequency: np.ndarray, temperature: float) -> np.ndarray:
    """P(c) ~ exp((1 - f_c) / T), the softmax of DAFormer's Eq. 9.

    Args:
        frequency: (C,) share of all labelled pixels, of the classes that may be drawn.
        temperature: T, more than 0; the lower, the more are rare classes preferred.

    Returns:
        (C,) float64 with sum 1.
    """
    score = (1 - frequency) / temperature
    weight = np.exp(score - score.max())
    return weight / weight.sum()


@DATA_SAMPLERS.register_module()
class RareClassSampler(Sampler):
    """Takes InfiniteSampler's or DefaultSampler's place; draws images again and again, not in turn.

    For each sample a class is drawn with the probability of :func:`class_probabilities`, then one
    of the images that hold it, all with the same chance. A class of which no image has
    ``min_pixels`` is never drawn. Nothing is saved: an epoch is as many draws as there are images.

    DAFormer's release asks for 3,000 pixels of the class in the image, for crops of 512x512 of
    images of 1280x720, and crops an image up to ten times until half as many are in the crop. The
    paper's formula knows neither, and a sampler does not see the crop; here ``min_pixels`` is 1.

    Args:
        dataset: a BaseSegDataset, or ConcatDataset or RepeatDataset of such.
        temperature: T, more than 0 (paper: 0.01).
        min_pixels: of a class, that an image must have to be drawn for it.
        counts: file with the pixels of each class and image. If there is none, they are counted
            from the labels, one after another in the first process, and written there; None: they
            are counted in every run.
        seed: the draws are a function of (seed, epoch) alone; None: one for all processes at
            random.
        by_epoch: whether the loop counts epochs; there are as many samples in each process
            (DefaultSampler's ``round_up=True``).

    Raises:
        TypeError, ValueError: an argument is outside its range, the file is of other data, or no
            image has enough pixels of any class.
    """

    def __init__(
        self,
        dataset: Sized,
        temperature: float = 0.01,
        min_pixels: int = 1,
        counts: str | None = None,
        seed: int | None = None,
        by_epoch: bool = False,
        **unknown: Any,
    ) -> None:
        allowed = ('temperature', 'min_pixels', 'counts', 'seed', 'by_epoch')
        check_keys('RareClassSampler', unknown, allowed)
        check_number('temperature', temperature, 0, float('inf'), open_low=True, open_high=True)
        check_integer('min_pixels', min_pixels, low=1)
        if seed is not None:
            check_integer('seed', seed, low=0)
        check_bool('by_epoch', by_epoch)
        self.seed = sync_random_seed() if seed is None else seed
        self.by_epoch = by_epoch
        self.size = len(dataset)
        self._rank, self._world_size = get_dist_info()
        self._epoch = 0
        self._num_skipped = 0
        self._prepare(_counts_for_all(dataset, counts), temperature, min_pixels)

    def draw(self, epoch: int) -> Tensor:
        """(size,) int64 indices of an epoch, counted from 0, for all processes in turns."""
        generator = generator_of(self.seed, epoch)
        drawn = torch.multinomial(self.probabilities, self.size, True, generator=generator)
        place = torch.randint(2**62, (self.size,), generator=generator) % self._num_images[drawn]
        return self._images[self._first[drawn] + place]

    def __iter__(self) -> Iterator[int]:
        return iter(self._of_rank()) if self.by_epoch else self._endless()

    def __len__(self) -> int:
        """Images of the data set; with ``by_epoch``, of this process in an epoch."""
        return -(-self.size // self._world_size) if self.by_epoch else self.size

    def set_epoch(self, epoch: int) -> None:
        """The epoch that an epoch-based loop begins."""
        self._epoch = epoch

    def skip(self, num_samples: int) -> None:
        """Begin behind so many samples of this process, as MMEngine does to resume."""
        self._num_skipped = num_samples

    def _prepare(self, counts: ClassCounts, temperature: float, min_pixels: int) -> None:
        pixels = np.bincount(counts.label, weights=counts.pixels)
        enough = counts.pixels >= min_pixels
        image, label = counts.image[enough], counts.label[enough]
        if not len(label):
            raise ValueError(
                f'min_pixels={min_pixels}: no image has as many of any class; lower it, or look at '
                'the labels'
            )
        # The images of a class lie side by side.
        order = np.argsort(label, kind='stable')
        classes, num_images = np.unique(label, return_counts=True)
        frequency = pixels[classes] / pixels.sum()
        self.classes = classes.tolist()
        self.probabilities = torch.from_numpy(class_probabilities(frequency, temperature))
        self._images = torch.from_numpy(image[order]).long()
        self._num_images = torch.from_numpy(num_images)
        self._first = torch.from_numpy(np.cumsum(num_images) - num_images)

    def _of_rank(self) -> list[int]:
        total = len(self) * self._world_size
        rows = torch.arange(self._rank, total, self._world_size) % self.size
        return self.draw(self._epoch)[rows].tolist()

    def _endless(self) -> Iterator[int]:
        position = self._num_skipped * self._world_size + self._rank
        drawn_epoch = None
        while True:
            epoch, row = divmod(position, self.size)
            if epoch != drawn_epoch:
                drawn, drawn_epoch = self.draw(epoch).numpy(), epoch
            yield int(drawn[row])
            position += self._world_size


def _counts_for_all(dataset: Sized, path: str | None) -> ClassCounts:
    """Of the first process, which reads or counts them, or raises for all."""
    shared: list = [None]
    if get_dist_info()[0] == 0:
        try:
            shared[0] = _load_or_count(dataset, None if path is None else Path(path))
        except Exception as error:  # the others would wait
            shared[0] = error
    broadcast_object_list(shared)
    if isinstance(shared[0], Exception):
        raise shared[0]
    return shared[0]


def _load_or_count(dataset: Sized, path: Path | None) -> ClassCounts:
    if path is None or not path.exists():
        print_log(f'Counting the classes in the labels of {len(dataset)} images.', 'current')
        counts = ClassCounts.of(dataset)
        if path is not None:
            counts.save(path)
        return counts
    counts = ClassCounts.load(path)
    if counts.num_images != len(dataset):
        raise ValueError(
            f'counts={str(path)!r} is of {counts.num_images} images, the data set has '
            f'{len(dataset)}; delete the file to have it made again, or name another'
        )
    return counts


def _label_maps(dataset: Any) -> Iterator[np.ndarray]:
    """The label map of each image, (H, W) integers, in the order of the indices."""
    if isinstance(dataset, ConcatDataset):
        yield from chain.from_iterable(map(_label_maps, dataset.datasets))
        return
    if isinstance(dataset, RepeatDataset):
        for _ in range(dataset.times):
            yield from _label_maps(dataset.dataset)
        return
    load = Compose(_loading(dataset.pipeline.transforms))
    for index in range(len(dataset)):
        results = load(dataset.get_data_info(index))
        if results.get('gt_seg_map') is None:
            raise ValueError(
                f'RareClassSampler: the pipeline of {type(dataset).__name__} loads no labels '
                f'(gt_seg_map) of image {index}; give it LoadAnnotations, or a file of counts'
            )
        yield results['gt_seg_map']


def _loading(transforms: list) -> list:
    """What loads labels, by MMCV's custom of naming."""
    names = [type(transform).__name__ for transform in transforms]
    load = [t for t, name in zip(transforms, names, strict=True) if name.startswith('Load')]
    labels = [t for t in load if type(t).__name__.endswith('Annotations')]
    return labels or load  # the image need not be read, where something else brings the labels
