"""Images of classes in a tar file, as CIFAR-10 is handed around in JPEG files."""

from __future__ import annotations

import tarfile
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import mmcv
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from pfb_mmseg.core.checks import check_integer


@DATASETS.register_module()
class LabClassTarDataset(BaseDataset):
    """Small images in a tar file, decoded when it is opened and kept in memory, for classifiers.

    Members are ``CLASS/NAME``, whatever stands before. What an image is, is the place of its class
    in ``metainfo['classes']``, by default the names in alphabetical order.

    Args:
        ann_file: the tar file, below ``data_root``.
        every: every so many-th image is taken; 1: all. Where the file goes class by class, so many
            times fewer of each.
        **kwargs: of MMEngine's ``BaseDataset``. The pipeline needs no step that loads: it gets
            ``img``, (H, W, 3) uint8 in the order BGR, and ``gt_label``; ``img_path`` is that of the
            tar file with the member's behind it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds an image that cannot be read, none at all, or one of no known class.
        TypeError, ValueError: ``every`` is outside its range.
    """

    def __init__(self, *args: Any, every: int = 1, **kwargs: Any) -> None:
        check_integer('every', every, low=1)
        self._every = every
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict for each image, in the order of the tar file."""
        found = []
        with tarfile.open(self.ann_file) as tar:
            members = (member for member in tar if member.isfile())
            for member in islice(members, 0, None, self._every):
                image = mmcv.imfrombytes(tar.extractfile(member).read(), backend='cv2')
                if image is None:
                    raise ValueError(f'{self.ann_file}: {member.name} is no image that can be read')
                path = PurePosixPath(self.ann_file, member.name)
                found.append((path.parent.name, str(path), image))
        if not found:
            raise ValueError(f'{self.ann_file} holds no image: expected members CLASS/NAME')
        names = sorted({name for name, *_ in found})
        classes = self._metainfo.setdefault('classes', tuple(names))
        if unknown := sorted(set(names) - set(classes)):
            raise ValueError(
                f'{self.ann_file} has images of {", ".join(unknown)}: expected the classes '
                f'{", ".join(classes)}'
            )
        labels = {name: label for label, name in enumerate(classes)}
        return [
            dict(img=image, img_path=path, gt_label=labels[name], ori_shape=image.shape[:2])
            for name, path, image in found
        ]
