"""Label noise for experiments: some images get the label map of another one."""

import io
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from mmengine import fileio
from PIL import Image


def draw_donors(sizes: Sequence[Hashable], share: float, seed: int) -> dict[int, int]:
    """Draw which images get a wrong label map, and whose.

    Args:
        sizes: Of each image's label map. Only a map of the same size can stand for another.
        share: Of the images that get a wrong one, in [0, 1], rounded to whole images.
        seed: Of the draw. The images drawn at a smaller share, and whose maps they get, are among
            those of a larger one.

    Returns:
        Index of the image -> index of the image whose map it gets, never the same.

    Raises:
        ValueError: Too few images have one of the same size beside them.
    """
    rng = np.random.default_rng(seed)
    order, luck = rng.permutation(len(sizes)).tolist(), rng.random(len(sizes))
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        alike[size].append(index)
    candidates = [index for index in order if len(alike[sizes[index]]) > 1]
    num = round(share * len(sizes))
    if num > len(candidates):
        raise ValueError(
            f'wrong_labels={share!r} of {len(sizes)} images are {num}, but only '
            f'{len(candidates)} have another of the same size, whose label map fits: set '
            f'wrong_labels to {len(candidates) / len(sizes):.2g} or less'
        )
    donors = {}
    for index in candidates[:num]:
        others = alike[sizes[index]]
        place = int(luck[index] * (len(others) - 1))
        donors[index] = others[place + (others[place] >= index)]  # the image itself is passed over
    return donors


class WrongLabelsMixin:
    """Gives a share of the images the label map of another one, drawn by seed.

    Put it in front of a data set like :class:`mmseg.datasets.BaseSegDataset`, and set
    ``wrong_labels`` for training only::

        @DATASETS.register_module()
        class NoisyCityscapes(WrongLabelsMixin, CityscapesDataset):
            '''Cityscapes, some of its label maps on the wrong frame.'''

    An image keeps its ``img_path``, so records and galleries know it by its name. Whose labels a
    wrong one has, stands in its data info as ``labels_of``, the ``img_path`` of that image.

    Args:
        *args: As for the data set behind.
        wrong_labels: Share of the images, in [0, 1].
        wrong_labels_seed: Seed of the draw, at least 0: the same images for the same files in
            every run.
        **kwargs: As for the data set behind.

    Raises:
        ValueError: An option is outside of what is allowed, there are no labels, or too few
            images have another of the same size, whose label map fits.
    """

    # Where in an image's data info it stands what its labels are loaded from.
    LABELS = 'seg_map_path'

    def __init__(
        self, *args: Any, wrong_labels: float = 0.0, wrong_labels_seed: int = 0, **kwargs: Any
    ) -> None:
        if not 0 <= wrong_labels <= 1:
            raise ValueError(f'wrong_labels must be in [0, 1], but is {wrong_labels!r}.')
        if wrong_labels_seed < 0:
            raise ValueError(f'wrong_labels_seed must be at least 0, but is {wrong_labels_seed!r}.')
        self.wrong_labels, self.wrong_labels_seed = wrong_labels, wrong_labels_seed
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images as the data set behind does, some with the labels of another."""
        return self.exchange_labels(super().load_data_list())

    def exchange_labels(self, infos: list[dict]) -> list[dict]:
        """Give some images the labels of another.

        A data set whose own ``load_data_list`` stands in front of this class's ends it with this.

        Args:
            infos: What is known of each image; changed in place.

        Returns:
            ``infos``.
        """
        if not self.wrong_labels or not infos:
            return infos
        if self.LABELS not in infos[0]:
            raise ValueError(
                f'wrong_labels={self.wrong_labels!r}, but the images have no {self.LABELS}: set '
                'data_prefix=dict(seg_map_path=...), or leave wrong_labels out'
            )
        labels = [info[self.LABELS] for info in infos]
        sizes = [self._label_size(info) for info in infos]
        donors = draw_donors(sizes, self.wrong_labels, self.wrong_labels_seed)
        for index, donor in donors.items():
            infos[index].update({self.LABELS: labels[donor], 'labels_of': infos[donor]['img_path']})
        return infos

    def _label_size(self, info: dict) -> tuple[int, int]:
        data = fileio.get(info[self.LABELS], backend_args=self.backend_args)
        with Image.open(io.BytesIO(data)) as labels:
            return labels.size
