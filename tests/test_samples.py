"""Data samples of the images that stay, where the host must not wait for the device."""

from types import SimpleNamespace

import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from pfb_mmseg.models.samples import select_samples


class OnADevice:
    """Indices of which only a reader on the host says that they do not lie there."""

    device = SimpleNamespace(type='cuda')

    def __init__(self, indices):
        self._indices = indices

    def tolist(self):
        return self._indices


def decided(indices):
    """A decision that was taken on a device."""
    selection = SimpleNamespace(indices=OnADevice(indices), num_kept=len(indices))
    return SimpleNamespace(selection=selection, take=lambda rows: rows[indices])


def sample(index, **fields):
    return BaseDataElement(metainfo=dict(img_path=f'{index}.png', pad_shape=(4, 4)), **fields)


def test_label_maps_are_gathered_and_keep_the_metainfo_that_all_share():
    samples = [
        sample(i, gt_sem_seg=PixelData(data=torch.full((1, 4, 4), i), metainfo=dict(of=i)))
        for i in range(4)
    ]
    kept = select_samples(samples, decided([1, 3]))
    assert [int(one.gt_sem_seg.data.unique()) for one in kept] == [1, 3]
    assert kept[0].metainfo == dict(pad_shape=(4, 4))


def test_instances_are_picked_whole_even_where_each_image_has_as_many():
    """Else their images' own metainfo, which heads of detectors read, would be lost."""
    samples = [sample(i, gt_instances=InstanceData(labels=torch.tensor([i, i]))) for i in range(4)]
    kept = select_samples(samples, decided([1, 3]))
    assert kept[0] is samples[1] and kept[1] is samples[3]
