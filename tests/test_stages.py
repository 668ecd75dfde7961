"""Which module is taken when the user names none, and what a chain of stages is."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from tiny import host
from torch import nn

from pfb_mmseg.blocking import (
    FAMILIES,
    BlockingPoint,
    Family,
    SinglePass,
    default_stage,
    early_stage,
    step_cost,
)


def encoder(**children):
    """An encoder with these children and nothing else."""
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def prepared(encoder, *args):
    point = BlockingPoint(host(encoder), *args)
    point.prepare()
    return point


def blocks(num):
    return nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(num))


@pytest.mark.parametrize(
    ('read', 'stage'),
    [([2], 'layer3'), ([1], 'layer2'), ([0, 1], 'layer2'), ([3], 'layer3'), ([-1], 'layer3')],
    ids=['third', 'second', 'deepest of two', 'never the last', 'counted from the end'],
)
def test_the_stage_that_the_auxiliary_heads_read_is_blocked_behind(read, stage):
    layers = {f'layer{index}': nn.Conv2d(3, 3, 1) for index in (1, 2, 3, 4)}
    assert default_stage(encoder(**layers), read) == stage


def test_outputs_are_counted_by_the_encoders_out_indices():
    chain = encoder(layers=blocks(12))
    chain.out_indices = (2, 5, 8, 11)
    assert default_stage(chain, [1]) == 'layers.5'
    assert default_stage(chain, [7]) == 'layers.7', 'no such output'


@pytest.mark.parametrize(('depth', 'index'), [(2, 0), (3, 1), (4, 2), (5, 3), (12, 7), (24, 15)])
def test_without_an_auxiliary_head_two_thirds_of_the_depth_are_taken(depth, index):
    assert default_stage(encoder(blocks=blocks(depth)), []) == f'blocks.{index}'


def test_stages_named_in_a_list_are_found():
    chain = encoder(a=nn.Identity(), b=nn.Identity(), c=nn.Identity())
    chain.res_layers = ['a', 'b', 'c']
    assert default_stage(chain, []) == 'b'


def test_a_stage_of_a_pyramid_vision_transformer_ends_with_its_norm():
    class PyramidVisionTransformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                nn.ModuleList([nn.Conv2d(3, 3, 1), blocks(2), nn.Identity()]) for _ in range(4)
            )

    assert default_stage(PyramidVisionTransformer(), []) == 'layers.2.2'


def test_a_plain_sequential_is_a_chain():
    assert default_stage(nn.Sequential(*blocks(3)), []) == '1'


def test_an_encoder_that_no_rule_knows_is_refused_with_the_option_to_set():
    with pytest.raises(ValueError, match=r"block_after='backbone\.stem'.* stem, tail"):
        default_stage(encoder(stem=nn.Identity(), tail=nn.Identity()), [])


def test_lora_hides_no_stages():
    init_default_scope('mmpretrain')
    vit = dict(type='VisionTransformer', arch='deit-tiny', out_type='featmap', out_indices=(2, 5))
    targets = [dict(type='qkv')]
    wrapped = MODELS.build(dict(type='LoRAModel', module=vit, alpha=16, rank=4, targets=targets))
    plain = MODELS.build(vit)
    assert default_stage(wrapped, [0]) == f'module.{default_stage(plain, [0])}'
    assert early_stage(wrapped) == f'module.{early_stage(plain)}'
    point = prepared(wrapped, default_stage(wrapped, []), (3, 224, 224))
    assert step_cost(wrapped, point, wrapped).share_behind > 0.2


def test_of_a_wrapper_around_what_no_rule_knows_something_lies_behind_the_suggestion():
    unknown = encoder(stem=nn.Identity(), body=nn.Identity(), tail=nn.Identity())
    with pytest.raises(ValueError, match=r"block_after='backbone\.inside\.body'"):
        default_stage(encoder(inside=unknown), [])


def test_a_rule_for_a_class_holds_for_its_subclasses(monkeypatch):
    class Encoder(nn.Module):
        pass

    class Deeper(Encoder):
        pass

    rule = Family(lambda encoder: ['stem', 'body', 'tail'], lambda encoder: [-1, 0])
    monkeypatch.setitem(FAMILIES, 'Encoder', rule)
    assert default_stage(Deeper(), []) == 'body'
    assert default_stage(Deeper(), [0]) == 'body', 'output 0 comes straight from no stage'
    assert default_stage(Deeper(), [1]) == 'stem'


class SideBranch(nn.Module):
    """What it returns is right after a cut behind ``side``, but the trunk runs on all images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.side = nn.Conv2d(4, 4, 1)
        self.trunk = nn.Conv2d(4, 8, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.side(x), self.trunk(x)


class RemembersTheBatch(SideBranch):
    """Reshapes by the number of images that came in: silently wrong for a third of them."""

    def forward(self, x):
        num = len(x)
        x = self.side(self.stem(x))
        return (x.reshape(num, -1, *x.shape[2:]) if x.numel() % num == 0 else x,)


@pytest.mark.parametrize('network', [SideBranch, RemembersTheBatch])
def test_a_cut_that_saves_nothing_or_mixes_images_is_refused(network):
    with pytest.raises(ValueError, match="Use strategy='two_pass'"):
        SinglePass(BlockingPoint(host(network()), 'side', (3, 6, 12))).check()


def test_the_blank_image_has_the_channels_of_the_first_convolution():
    gray = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3))
    assert prepared(gray, '1').input_shape == (1, 128, 256)


class OwnSizeOnly(nn.Module):
    def __init__(self, img_size=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.positions = nn.Parameter(torch.zeros(16, 16, 4))
        if img_size is not None:
            self.img_size = img_size

    def forward(self, x):
        return self.stem(x) + self.positions.permute(2, 0, 1)


@pytest.mark.parametrize('img_size', [32, (32, 32)])
def test_an_encoder_that_takes_one_size_only_is_tried_with_its_own(img_size):
    point = prepared(OwnSizeOnly(img_size), 'stem')
    assert point.num_channels == 4
    assert point.score(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


def test_an_encoder_that_cannot_take_the_blank_image_is_refused_with_the_option_to_set():
    class Fussy(OwnSizeOnly):
        def forward(self, x):
            return self.stem(x + self.positions[0, 0, 0].expand(1, 3, 32, 32))

    with pytest.raises(ValueError, match=r'Fussy cannot take .* \(3, 224, 224\).* input_shape='):
        prepared(Fussy(), 'stem')
    assert prepared(Fussy(), 'stem', (3, 32, 32)).num_channels == 4


@pytest.mark.parametrize(
    ('rearranged', 'channel_dim'),
    [(lambda x: x, 1), (lambda x: x.permute(0, 2, 3, 1), -1)],
    ids=['NCHW', 'NHWC'],
)
def test_channels_are_told_from_space_on_a_square_image_too(rearranged, channel_dim):
    class Stage(nn.Module):
        def forward(self, x):
            return rearranged(x)

    network = nn.Sequential(nn.Conv2d(3, 5, 1), Stage())
    assert prepared(network, '1', (3, 16, 16)).num_channels == 5


def test_a_module_without_a_row_for_each_image_is_refused():
    class Windows(nn.Module):
        def forward(self, x):
            return x.unfold(3, 4, 4).permute(0, 3, 1, 2, 4).flatten(0, 1)

    with pytest.raises(ValueError, match='row for each image; choose another block_after'):
        prepared(nn.Sequential(nn.Conv2d(3, 4, 1), Windows()), '1')


def test_the_cost_counts_the_operations_past_the_point():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 9, 1)).train()
    point = prepared(network, '1')
    random_state = torch.get_rng_state()
    cost = step_cost(network, point, lambda images: network(images + torch.rand(1)))
    assert cost.share_behind == pytest.approx(36 / (12 + 16 + 36))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in network)


def test_the_cost_is_unknown_where_the_forward_pass_fails():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))

    def fails(images):
        raise RuntimeError('no')

    assert step_cost(network, prepared(network, '0'), fails) is None
