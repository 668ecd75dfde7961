"""Weights with the channels last."""

from types import SimpleNamespace

import torch
from torch import nn

from pfb_mmseg.hooks import ChannelsLastHook


def test_weights_and_what_they_compute_have_the_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3))
    images = torch.rand(2, 3, 8, 8)
    expected = model(images)
    ChannelsLastHook().before_run(SimpleNamespace(model=model))
    output = model(images)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-5)
