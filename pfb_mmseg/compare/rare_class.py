"""Rare class sampling (DAFormer, Hoyer et al., CVPR 2022): a class is drawn, then its image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..core.checks import check_integer, check_number
from ..core.draws import generator_of

# What in a pipeline is no class, in all of MMSegmentation.
_IGNORE = 255


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
    """Takes InfiniteSampler's place; draws images again and again, not in turn.

    For each sample a class is drawn with the probability of :func:`class_probabilities`, then one
    of the images that hold it, all with the same chance. To know the classes, all label maps are
    read once before training, which takes about a minute for the 2,975 of Cityscapes.

    DAFormer's release also asks for 3,000 pixels of the class in the image and crops it up to ten
    times until half as many are in the crop. The paper's formula knows neither, and a sampler does
    not see the crop; here a pixel is enough.

    Args:
        dataset: a BaseSegDataset, or ConcatDataset or RepeatDataset of such.
        temperature: T, more than 0 (paper: 0.01).
        seed: the draws are a function of (seed, epoch) alone, an epoch being as many draws as there
            are images; None: one for all processes at random.

    Raises:
        TypeError, ValueError: an argument is outside its range, an image comes without labels, or
            no image has any class.
    """

    def __init__(self, dataset: Sized, temperature: float = 0.01, seed: int | None = None) -> None:
        check_number('temperature', temperature, 0, float('inf'), open_low=True, open_high=True)
        if seed is not None:
            check_integer('seed', seed, low=0)
        self.seed = sync_random_seed() if seed is None else seed
        self.size = len(dataset)
        self._rank, self._world_size = get_dist_info()
        self._num_skipped = 0
        pixels, self._images = count_classes(dataset)
        frequency = np.array([*pixels.values()]) / sum(pixels.values())
        self.probabilities = torch.from_numpy(class_probabilities(frequency, temperature))

    def draw(self, epoch: int) -> list[int]:
        """The indices of an epoch, counted from 0, for all processes in turns."""
        generator = generator_of(self.seed, epoch)
        drawn = torch.multinomial(self.probabilities, self.size, True, generator=generator)
        places = torch.randint(2**62, (self.size,), generator=generator)
        holders = [*self._images.values()]
        return [
            holders[label][place % len(holders[label])]
            for label, place in zip(drawn.tolist(), places.tolist(), strict=True)
        ]

    def __iter__(self) -> Iterator[int]:
        epochs = itertools.chain.from_iterable(map(self.draw, itertools.count()))
        first = self._num_skipped * self._world_size + self._rank
        return itertools.islice(epochs, first, None, self._world_size)

    def __len__(self) -> int:
        return self.size

    def skip(self, num_samples: int) -> None:
        """Begin behind so many samples of this process, as MMEngine does to resume."""
        self._num_skipped = num_samples


def count_classes(dataset: Any) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Read all label maps, with the transforms that load them and none that changes an image.

    Returns:
        By class, the pixels in the whole data set, and the indices of the images that hold it.

    Raises:
        ValueError: an image comes without labels, or no image has any class.
    """
    print_log(f'Counting the classes in the labels of {len(dataset)} images.', 'current')
    pixels: dict[int, int] = {}
    images: dict[int, list[int]] = {}
    for index, labels in enumerate(_label_maps(dataset)):
        counts = np.bincount(labels.ravel(), minlength=_IGNORE + 1)
        counts[_IGNORE] = 0
        for label in counts.nonzero()[0].tolist():
            pixels[label] = pixels.get(label, 0) + int(counts[label])
            images.setdefault(label, []).append(index)
    if not pixels:
        raise ValueError('RareClassSampler: no image has a pixel of any class')
    return pixels, images


def _label_maps(dataset: Any) -> Iterator[np.ndarray]:
    """The label map of each image, (H, W) integers, in the order of the indices."""
    if isinstance(dataset, ConcatDataset):
        yield from itertools.chain.from_iterable(map(_label_maps, dataset.datasets))
        return
    if isinstance(dataset, RepeatDataset):
        for _ in range(dataset.times):
            yield from _label_maps(dataset.dataset)
        return
    # What loads labels goes by MMCV's custom of naming; the image is read only where nothing does.
    loaders = [one for one in dataset.pipeline.transforms if type(one).__name__.startswith('Load')]
    labels = [one for one in loaders if type(one).__name__.endswith('Annotations')]
    load = Compose(labels or loaders)
    for index in range(len(dataset)):
        results = load(dataset.get_data_info(index))
        if results.get('gt_seg_map') is None:
            raise ValueError(
                f'RareClassSampler: the pipeline of {type(dataset).__name__} loads no labels '
                f'(gt_seg_map) of image {index}; give it LoadAnnotations'
            )
        yield results['gt_seg_map']
