"""PFB on each family of backbones of the installed zoo, and how the rest of the zoo is read."""

import gc
import json
from pathlib import Path

import pytest
import tiny

from benchmarks import coverage, zoo

# Where each family is blocked, its channels there, and whether it is a chain of stages.
EXPECTED = {
    'BEiT': ('layers.7', 192, 'yes'),
    'BiSeNetV1': ('context_path.backbone.layer3', 256, 'refused'),
    'BiSeNetV2': ('semantic.stage4', 128, 'refused'),
    'CGNet': ('norm_prelu_1', 131, 'yes'),
    'DDRNet': ('context_branch_layers.1', 256, 'refused'),
    'ERFNet': ('encoder.14', 128, 'yes'),
    'FastSCNN': ('global_feature_extractor', 128, 'refused'),
    'HRNet': ('stage3', 18 + 36 + 72, 'yes'),
    'ICNet': ('backbone.layer3', 256, 'yes'),
    'MAE': ('layers.7', 192, 'yes'),
    'MSCAN': ('norm3', 160, 'refused'),
    'MixVisionTransformer': ('layers.2.2', 160, 'yes'),
    'MobileNetV2': ('layer5', 96, 'yes'),
    'MobileNetV3': ('layer8', 48, 'yes'),
    'PCPVT': ('layers.2.5', 320, 'refused'),
    'PIDNet': ('i_branch_layers.1', 256, 'refused'),
    'ResNeSt': ('layer3', 256, 'yes'),
    'ResNet': ('layer3', 256, 'yes'),
    'ResNetV1c': ('layer3', 256, 'yes'),
    'STDCContextPathNet': ('backbone.stages.2', 256, 'yes'),
    'SVT': ('norm_list.2', 256, 'refused'),
    'SwinTransformer': ('stages.2.blocks.5', 384, 'yes'),
    'UNet': ('encoder.3', 128, 'refused'),
    'VisionTransformer': ('layers.7', 384, 'yes'),
}


# A chain of stages, one with branches, a U and a transformer.
SAMPLE = ('deeplabv3/', 'fastscnn/', 'unet/', 'segformer/')


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, marks=[] if path.startswith(SAMPLE) else [pytest.mark.slow])
        for path in zoo.QUICK
    ],
)
def test_a_model_of_each_family_trains_on_the_kept_images(path):
    combination = zoo.read_combination(zoo.zoo_root() / path, zoo.QUICK[path])
    result = coverage.cover(combination)
    gc.collect()
    assert result.plain and result.pfb, result.reason
    assert not result.reason
    name, num_channels, single_pass = EXPECTED[result.backbone]
    assert result.block_after == f'backbone.{name}'
    assert result.channels == num_channels
    assert result.single_pass == single_pass
    if result.backbone != 'MobileNetV3':  # its head takes no image as small as the blank one
        assert 0.2 < result.behind < 1


def test_the_quick_subset_has_every_family_of_backbones():
    combinations = zoo.quick_combinations(zoo.zoo_root())
    assert {combination.backbone for combination in combinations} == set(EXPECTED)
    assert {combination.segmentor for combination in combinations} == set(zoo.SEGMENTORS)


def test_configs_are_listed_without_their_parts_and_small_models_first():
    root = zoo.zoo_root()
    paths = [path.relative_to(root) for path in zoo.list_configs(root)]
    assert not any('_base_' in path.parts for path in paths)
    first = [path.name.split('_4xb')[0] for path in paths if path.parent == Path('fcn')]
    assert first.index('fcn_r18-d8') < first.index('fcn_r50-d8') < first.index('fcn_r101-d8')


def test_a_combination_that_cannot_run_here_says_why(tmp_path):
    config = tmp_path / 'unknown.py'
    config.write_text(
        "model = dict(type='EncoderDecoder', backbone=dict(type='NoSuchNet'), "
        "decode_head=[dict(type='FCNHead'), dict(type='OCRHead')])"
    )
    result = coverage.cover(zoo.read_combination(config))
    assert not result.plain and not result.pfb
    assert 'NoSuchNet' in result.reason
    assert coverage.to_line(result).startswith(
        'EncoderDecoder, NoSuchNet, FCNHead + OCRHead: plain step no, PFB step no. '
    )
    header, rule, row = coverage.to_markdown([result]).splitlines()
    assert header.count('|') == rule.count('|') == row.count('|')
    assert coverage.summary([result]).startswith('Combinations: 1. Plain step: 0, PFB step: 0')


def test_a_head_that_sees_other_images_than_the_kept_ones_is_noticed():
    model = tiny.build()
    images, samples = tiny.images(), tiny.samples()
    coverage.train_step(model, images, samples, num_rows=4)
    model.pfb.pruning = False
    with pytest.raises(AssertionError, match=r"'auxiliary_head': \{8\}"):
        coverage.train_step(model, images, samples, num_rows=4)


def test_a_gradient_that_does_not_reach_the_stem_is_noticed():
    model = tiny.build()
    model.backbone.layer4.register_forward_hook(lambda module, args, output: output.detach())
    model.backbone.layer3.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(AssertionError, match='no gradient reaches the stem'):
        coverage.train_step(model, tiny.images(), tiny.samples(), num_rows=4)


@pytest.mark.slow
@pytest.mark.parametrize('path', zoo.QUICK)
def test_each_family_is_taught_by_its_early_exit(path):
    combination = zoo.read_combination(zoo.zoo_root() / path, zoo.QUICK[path])
    result = coverage.cover(combination, 'hard')
    gc.collect()
    assert result.plain and result.pfb, result.reason


def test_the_command_prints_a_line_and_a_total_and_writes_the_table(tmp_path, capsys):
    out = tmp_path / 'coverage.json'
    with pytest.raises(SystemExit) as end:
        coverage.main(['--quick', '--only=FastSCNN', f'--out={out}', '--criterion=hard'])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert 'FastSCNN, DepthwiseSeparableFCNHead: plain step yes, PFB step yes' in told
    assert 'Combinations: 1. Plain step: 1, PFB step: 1' in told
    (row,) = json.loads(out.read_text())
    assert row['pfb'] and row['block_after'] == 'backbone.global_feature_extractor'
