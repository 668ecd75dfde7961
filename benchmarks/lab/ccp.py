"""Clothing Co-Parsing: street photos with 42 classes of clothing, and the same in 14 groups."""

from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from benchmarks.lab.wrong_labels import WrongLabelsMixin


def _metainfo(*classes: str) -> dict:
    """Names with distinct RGB colours by the rule of PASCAL VOC, which gives label 0 black.

    The bits of a label are dealt to red, green and blue in turn, each from its highest bit on.
    """
    palette = [
        [
            sum((label >> 3 * bit + channel & 1) << 7 - bit for bit in range(8))
            for channel in range(3)
        ]
        for label in range(len(classes))
    ]
    return dict(classes=classes, palette=palette)


@DATASETS.register_module()
class LabCCPDataset(WrongLabelsMixin, BaseSegDataset):
    """Clothing Co-Parsing: street photos of people, in 42 classes with a long tail.

    The files are ``<data_root>/train/*.jpg`` with ``<data_root>/trainannot/*.png`` of the same
    stem, and ``val`` with ``valannot`` likewise. Label maps are uint8 class indices; 255 is
    ignored. 'null' is the background. Of the 59 classes that were published, these are the ones
    in 20 photos or more.

    Args:
        img_suffix: How image names end.
        seg_map_suffix: How label-map names end.
        **kwargs: As for :class:`mmseg.datasets.BaseSegDataset`, and ``wrong_labels`` of
            :class:`WrongLabelsMixin`.

    Source: Yang, Luo and Lin, "Clothing Co-Parsing by Joint Image Segmentation and Labeling",
    CVPR 2014.
    """

    METAINFO = _metainfo(
        *('null', 'accessories', 'bag', 'belt', 'blazer', 'blouse', 'boots', 'bracelet', 'cape'),
        *('coat', 'dress', 'glasses', 'hair', 'hat', 'jacket', 'jeans', 'jumper', 'leggings'),
        *('loafers', 'necklace', 'pants', 'purse', 'romper', 'sandals', 'scarf', 'shirt', 'shoes'),
        *('shorts', 'skin', 'skirt', 'socks', 'stockings', 'suit', 'sunglasses', 'sweater'),
        *('sweatshirt', 't-shirt', 'tie', 'top', 'vest', 'wallet', 'watch'),
    )

    def __init__(
        self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs: Any
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)


@DATASETS.register_module()
class LabCCPCoarseDataset(LabCCPDataset):
    """The same photos in 14 groups of those classes, which a short run on a CPU can learn.

    The label maps are in ``traincoarse`` and ``valcoarse``; all else is as with
    :class:`LabCCPDataset`.
    """

    METAINFO = _metainfo(
        *('background', 'skin', 'hair', 'footwear', 'trousers', 'skirt', 'dress', 'top'),
        *('outerwear', 'bag', 'hat', 'glasses', 'legwear', 'accessory'),
    )
