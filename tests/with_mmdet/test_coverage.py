"""Of MMSegmentation's zoo, what needs MMDetection or compiled operations of mmcv."""

from importlib.machinery import PathFinder
from importlib.util import find_spec

import pytest

from benchmarks import coverage, zoo

_RESNET = {'backbone.base_channels': 16, 'backbone.stem_channels': 16}
_MASKS = {'decode_head.num_queries': 10, 'decode_head.transformer_decoder.num_layers': 1}
_PIXELS = {'decode_head.pixel_decoder.encoder.num_layers': 1}
_SWIN = {'backbone.depths': [1, 1, 2, 1]}
_WIDTHS = {'decode_head.in_channels': [64, 128, 256, 512]}
# Which configs, with what makes them smaller, and where they are blocked.
CONFIGS = {
    'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py': (
        _RESNET | _WIDTHS | _MASKS | _PIXELS,
        'layer3',
    ),
    'mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py': (
        _SWIN | _MASKS | _PIXELS,
        'stages.2.blocks.1',
    ),
    'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py': (
        _RESNET | _WIDTHS | _MASKS,
        'layer3',
    ),
    'maskformer/maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512.py': (
        _SWIN | _MASKS,
        'stages.2.blocks.1',
    ),
    'ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': (
        _RESNET | {'decode_head.in_channels': 512, 'auxiliary_head.in_channels': 256},
        'layer3',
    ),
    'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py': (
        _RESNET | {'neck.in_channels': [64, 128, 256, 512]},
        'layer3',
    ),
    'psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py': (
        _RESNET | {'decode_head.in_channels': 512, 'auxiliary_head.in_channels': 256},
        'layer3',
    ),
}
NEEDS_OPERATIONS = ('psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py',)


def _compiled():
    """Whether mmcv has its operations, and not the stand-in."""
    return bool(PathFinder.find_spec('mmcv._ext', find_spec('mmcv').submodule_search_locations))


@pytest.mark.parametrize('path', CONFIGS)
def test_all_but_psanet_train_with_pfb_without_compiled_operations(path):
    overrides, block_after = CONFIGS[path]
    result = coverage.cover(zoo.read_combination(zoo.zoo_root() / path, overrides))
    if path in NEEDS_OPERATIONS and not _compiled():
        assert 'psamask' in result.reason
        return
    assert result.plain and result.pfb, result.reason
    assert not result.reason
    assert result.block_after == f'backbone.{block_after}'
    assert result.single_pass == 'yes'
    assert 0.2 < result.behind < 1
