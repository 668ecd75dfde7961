"""Images of classes in a tar file."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.lab import ClassTarDataset

CIFAR10 = Path(__file__).parents[2] / 'shared' / 'cifar10'
RED, BLUE = (250, 10, 10), (10, 10, 250)


def write(path, members):
    """{name: RGB colour, or bytes} -> a tar file of images of 4x6 pixels."""
    with tarfile.open(path, 'w') as tar:
        for name, colour in members.items():
            file = io.BytesIO(colour if isinstance(colour, bytes) else b'')
            if isinstance(colour, tuple):
                Image.new('RGB', (6, 4), colour).save(file, 'png')
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))


def test_classes_are_the_folders_in_alphabetical_order(tmp_path):
    write(tmp_path / 'train.tar', {'x/rose/1.png': RED, 'x/iris/1.png': BLUE, 'x/rose/2.png': RED})
    dataset = ClassTarDataset(ann_file='train.tar', data_root=str(tmp_path))
    assert dataset.metainfo['classes'] == ('iris', 'rose')
    assert [dataset[i]['gt_label'] for i in range(3)] == [1, 0, 1]
    assert dataset[1]['img_path'] == f'{tmp_path}/train.tar/x/iris/1.png'
    image = dataset[0]['img']
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    assert (image == RED[::-1]).all()  # BGR


def test_of_a_file_that_goes_class_by_class_a_part_of_each_can_be_taken(tmp_path):
    members = {f'{name}/{i}.png': RED for name in ('iris', 'rose') for i in range(6)}
    write(tmp_path / 'train.tar', members)
    dataset = ClassTarDataset(ann_file='train.tar', data_root=str(tmp_path), every=3)
    assert [dataset[i]['gt_label'] for i in range(len(dataset))] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match='every=0: expected'):
        ClassTarDataset(ann_file='train.tar', data_root=str(tmp_path), every=0)


def test_named_classes_keep_their_places(tmp_path):
    write(tmp_path / 'val.tar', {'rose/1.png': RED})
    classes = ('tulip', 'rose')
    options = dict(ann_file='val.tar', data_root=str(tmp_path))
    assert ClassTarDataset(metainfo=dict(classes=classes), **options)[0]['gt_label'] == 1
    with pytest.raises(ValueError, match='images of rose: expected the classes iris'):
        ClassTarDataset(metainfo=dict(classes=('iris',)), **options)


@pytest.mark.parametrize(
    'members, message',
    [
        ({}, 'holds no image: expected members CLASS/NAME'),
        ({'rose/1.png': b'no image'}, 'rose/1.png is no image that can be read'),
    ],
)
def test_what_cannot_be_read_is_named(members, message, tmp_path):
    write(tmp_path / 'train.tar', members)
    with pytest.raises(ValueError, match=message):
        ClassTarDataset(ann_file='train.tar', data_root=str(tmp_path))


def test_it_reads_cifar_10():
    if not CIFAR10.is_dir():
        pytest.skip(f'needs CIFAR-10 in {CIFAR10}')
    dataset = ClassTarDataset(ann_file='val.tar', data_root=str(CIFAR10))
    assert len(dataset) == 5000 and dataset.metainfo['classes'][3] == 'cat'
    assert dataset[0]['img'].shape == (32, 32, 3)
