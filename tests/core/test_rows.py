"""Rows of a batch that are taken out of it."""

import pytest
import torch

from pfb_mmseg.core.selection import take_rows

CHOSEN = torch.tensor([0, 3, 4])


@pytest.mark.parametrize(
    'memory_format', [torch.contiguous_format, torch.channels_last], ids=['NCHW', 'NHWC']
)
@pytest.mark.parametrize('shape', [(6, 3, 8, 10), (6, 1, 8, 10), (6, 3, 1, 1)], ids=str)
def test_images_are_the_same_and_lie_in_memory_as_they_did(memory_format, shape):
    images = torch.randn(shape).to(memory_format=memory_format)
    taken = take_rows(images, CHOSEN)
    assert torch.equal(taken, images[CHOSEN])
    assert taken.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('rows', [torch.arange(6), torch.rand(6, 2) > 0.5, torch.rand(6, 2, 3)])
def test_rows_of_every_shape_and_type_are_taken(rows):
    taken = take_rows(rows, CHOSEN)
    assert torch.equal(taken, rows[CHOSEN]) and taken.dtype == rows.dtype


def test_gradients_reach_the_rows_that_were_taken():
    images = torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    take_rows(images, CHOSEN).sum().backward()
    assert images.grad.sum(dim=(1, 2, 3)).tolist() == [48, 0, 0, 48, 48, 0]
