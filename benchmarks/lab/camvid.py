"""CamVid in the 11-class split that SegNet popularised."""

from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from benchmarks.lab.wrong_labels import WrongLabelsMixin


@DATASETS.register_module()
class LabCamVidDataset(WrongLabelsMixin, BaseSegDataset):
    """Driving frames with 11 classes, in folders of images and of label maps.

    The files are ``<data_root>/train/*.jpg`` with ``<data_root>/trainannot/*.png`` of the same
    stem, and ``val`` with ``valannot`` likewise. Label maps are uint8 class indices; 255 is
    ignored.

    Args:
        img_suffix: How image names end.
        seg_map_suffix: How label-map names end.
        **kwargs: As for :class:`mmseg.datasets.BaseSegDataset`, and ``wrong_labels`` of
            :class:`WrongLabelsMixin`.

    Source: Brostow et al., "Semantic object classes in video", 2009; the split and the palette
    are those of Badrinarayanan et al., "SegNet", 2017.
    """

    METAINFO = dict(
        classes=(
            'Sky',
            'Building',
            'Pole',
            'Road',
            'Pavement',
            'Tree',
            'SignSymbol',
            'Fence',
            'Car',
            'Pedestrian',
            'Bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    def __init__(
        self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs: Any
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
