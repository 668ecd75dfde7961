"""Of MMSegmentation's zoo, what needs MMDetection or compiled operations of mmcv."""

import gc
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
}
# The one kind of model that runs a compiled operation in training.
PSANET = 'psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
PSANET_OVERRIDES = _RESNET | {'decode_head.in_channels': 512, 'auxiliary_head.in_channels': 256}

COMPILED = bool(  # not the stand-in
    PathFinder.find_spec('mmcv._ext', find_spec('mmcv').submodule_search_locations)
)


def cover(path, overrides, criterion='rare'):
    return coverage.cover(zoo.read_combination(zoo.zoo_root() / path, overrides), criterion)


@pytest.mark.parametrize('path', CONFIGS)
def test_models_that_import_compiled_operations_train_without_them(path):
    overrides, block_after = CONFIGS[path]
    result = cover(path, overrides)
    assert result.plain and result.pfb, result.reason
    assert not result.reason
    assert result.block_after == f'backbone.{block_after}'
    assert result.single_pass == 'yes'
    assert 0.2 < result.behind < 1


@pytest.mark.skipif(COMPILED, reason='mmcv has compiled operations')
def test_psanet_says_which_operation_is_missing():
    result = cover(PSANET, PSANET_OVERRIDES)
    assert not result.plain and 'psamask' in result.reason


@pytest.mark.skipif(not COMPILED, reason='mmcv has no compiled operations')
@pytest.mark.parametrize('criterion', coverage.CRITERIA)
def test_psanet_trains_with_compiled_operations(criterion):
    result = cover(PSANET, PSANET_OVERRIDES, criterion)
    assert result.plain and result.pfb, result.reason
    assert result.block_after == 'backbone.layer3' and result.single_pass == 'yes'


@pytest.mark.slow
@pytest.mark.parametrize('criterion', coverage.CRITERIA)
def test_all_kinds_of_model_but_psanet_train_at_their_full_size(criterion):
    paths = zoo.list_configs(zoo.zoo_root())
    combinations, _ = zoo.find_combinations(map(zoo.try_to_read, paths))
    others = [one for one in combinations if one.head != 'PSAHead']
    assert len(combinations) == len(others) + 1 == 70
    failed = []
    for one in others:
        result = coverage.cover(one, criterion)
        gc.collect()
        if not (result.plain and result.pfb):
            failed.append(coverage.to_line(result))
    assert failed == []
