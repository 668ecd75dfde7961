"""PFB on families of backbones of MMPretrain's zoo."""

import gc

import pytest

from benchmarks import coverage, zoo

# Where each is blocked, its channels there, and whether it is a chain of stages.
EXPECTED = {
    'convnext': ('stages.1', 80, 'yes'),
    'deit': ('layers.2', 192, 'yes'),
    'efficientnet': ('layers.2', 24, 'yes'),
    'mobilenet_v2': ('layer4', 64, 'yes'),
    'mobilevit': ('layers.1', 24, 'yes'),
    'regnet': ('layer2', 64, 'yes'),
    'resnet18': ('layer1', 64, 'yes'),
    'resnet50': ('layer2', 128, 'yes'),
    'swin_transformer': ('stages.0.blocks.1', 96, 'yes'),
    'van': ('blocks2.2', 64, 'yes'),
}


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, marks=[] if 'resnet18' in path or 'deit' in path else [pytest.mark.slow])
        for path in zoo.QUICK_CLASSIFIERS
    ],
)
def test_a_model_of_each_family_trains_on_the_kept_images(path):
    root = zoo.zoo_root('mmpretrain')
    combination = zoo.read_combination(root / path, zoo.QUICK_CLASSIFIERS[path])
    result = coverage.cover(combination)
    gc.collect()
    assert result.plain and result.pfb, result.reason
    assert not result.reason
    [key] = [key for key in EXPECTED if key in path.replace('resnet/', '')]
    name, num_channels, single_pass = EXPECTED[key]
    assert result.block_after == f'backbone.{name}'
    assert result.channels == num_channels
    assert result.single_pass == single_pass
    assert 0.2 < result.behind < 1
