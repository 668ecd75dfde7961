"""A blocked step of a classifier is a plain step on the images that stay."""

import pytest
import tiny
import tiny_classifier
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import set_random_seed

from pfb_mmseg.blocking import BlockingPoint, early_stage

SMOOTH = dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=5))
SOFT = dict(loss=dict(type='CrossEntropyLoss', use_soft=True))


def step(model, images, samples):
    """Loss and gradients of all parameters but PFB's own."""
    model.zero_grad()
    loss = model.loss(images, samples)['loss']
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if 'pfb.' not in n}


@pytest.mark.parametrize(
    ('head', 'samples'),
    [
        ({}, tiny_classifier.samples),
        (SMOOTH, tiny_classifier.samples),
        (SMOOTH, tiny_classifier.mixed_samples),
        (SOFT, tiny_classifier.mixed_samples),
    ],
    ids=['classes', 'smoothed classes', 'smoothed mixtures', 'mixtures'],
)
@pytest.mark.parametrize('criterion', ['rare', 'random', 'loss_topk'])
def test_loss_gradients_and_statistics_are_those_of_the_kept_images(head, samples, criterion):
    model = tiny_classifier.build(dict(criterion=criterion), head)
    twin = tiny_classifier.plain_twin(model, head)
    images = tiny_classifier.images()
    loss, gradients = step(model, images, samples())
    kept = model.pfb.selection.indices
    assert len(kept) == 4
    expected = step(twin, images[kept], tiny_classifier.some_of(samples(), kept))
    torch.testing.assert_close((loss, gradients), expected)
    state, twins = model.state_dict(), twin.state_dict()
    torch.testing.assert_close({key: state[key] for key in twins}, twins)


def test_single_pass_cuts_the_batch_behind_the_blocked_stage():
    model = tiny_classifier.build(dict(strategy='single_pass'))
    twin = tiny_classifier.plain_twin(model)
    images, samples = tiny_classifier.images(), tiny_classifier.samples()
    loss, gradients = step(model, images, samples)
    kept = model.pfb.selection.indices
    assert model.pfb.point.name == 'layer1' and len(kept) == 4
    net = twin.backbone
    maps = net.layer1(net.relu(net.norm1(net.conv1(images))))[kept]
    maps = net.layer4(net.layer3(net.layer2(maps)))
    expected = twin.head.loss(twin.neck((maps,)), tiny_classifier.some_of(samples, kept))['loss']
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients, {n: p.grad for n, p in twin.named_parameters()})


@pytest.mark.parametrize('augment', ['Mixup', 'CutMix'])
def test_labels_that_the_preprocessor_mixes_go_with_their_images(augment):
    """In the whole training step, as a runner calls it."""
    augments = dict(augments=[dict(type=augment, alpha=1.0)])
    model = tiny_classifier.build(head=SOFT, train_cfg=augments)
    twin = tiny_classifier.plain_twin(model, SOFT, train_cfg=augments)
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0))

    def batch():
        return dict(inputs=tiny_classifier.images(), data_samples=tiny_classifier.samples())

    set_random_seed(3)
    mixed = twin.data_preprocessor(batch(), training=True)
    assert any((sample.gt_score > 0).sum() == 2 for sample in mixed['data_samples'])
    set_random_seed(3)
    found = model.train_step(batch(), optimizer)
    kept = model.pfb.selection.indices
    expected = twin.loss(
        mixed['inputs'][kept], tiny_classifier.some_of(mixed['data_samples'], kept)
    )
    assert found['loss'].item() == pytest.approx(expected['loss'].item(), rel=1e-5)


def test_mixed_precision():
    model = tiny_classifier.build(dict(criterion='random'))
    twin = tiny_classifier.plain_twin(model)
    images, samples = tiny_classifier.images(), tiny_classifier.samples()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.loss(images, samples)['loss']
        kept = model.pfb.selection.indices
        expected = twin.loss(images[kept], tiny_classifier.some_of(samples, kept))['loss']
    assert model.backbone.layer1[0].conv1.weight.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_inference_is_the_plain_classifiers_and_checkpoints_go_both_ways():
    model = tiny_classifier.build(dict(criterion='hard'))
    twin = tiny_classifier.plain_twin(model)
    images = tiny_classifier.images()
    one, other = (
        torch.stack([s.pred_score for s in m.eval()(images, mode='predict')]) for m in (model, twin)
    )
    assert torch.equal(one, other)
    model.load_state_dict(twin.state_dict(), strict=True)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('pfb.')}
    twin.load_state_dict(state, strict=True)


def test_a_batch_norm_behind_the_pooling_keeps_two_images():
    head = dict(
        type='StackedLinearClsHead', mid_channels=[16], norm_cfg=dict(type='BN1d'), act_cfg=None
    )
    model = tiny_classifier.build(dict(prune_ratio=0.9), head)
    model.loss(tiny_classifier.images(), tiny_classifier.samples())
    assert len(model.pfb.selection.indices) == 2
    assert tiny_classifier.build(dict(prune_ratio=0.9)).pfb.quota.min_keep == 1


def test_split_attention_normalises_pooled_features_and_keeps_two():
    backbone = dict(type='ResNeSt', depth=50, stem_channels=8, base_channels=8)
    model = tiny_classifier.build(dict(prune_ratio=0.9), dict(in_channels=256), backbone=backbone)
    model.loss(tiny_classifier.images(size=64), tiny_classifier.samples())
    assert len(model.pfb.selection.indices) == 2


def test_a_batch_norm_in_front_of_the_pooling_keeps_one():
    neck = dict(type='HRFuseScales', in_channels=[64], out_channels=64)
    model = tiny_classifier.build(dict(prune_ratio=0.9), neck=neck)
    assert model.pfb.quota.min_keep == 1


def test_a_backbone_that_takes_squares_only():
    class Squares(torch.nn.Sequential):
        def forward(self, images):
            assert images.shape[2] == images.shape[3]
            return super().forward(images)

    backbone = Squares(torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Conv2d(4, 8, 4, stride=4))
    cfg = tiny_classifier.model_cfg(backbone=backbone, head=dict(in_channels=8))
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg)
    model.pfb.prepare()
    assert model.pfb.point.input_shape == (3, 224, 224)
    assert model.pfb.point.num_channels == 4


def test_single_pass_asks_for_the_size_of_a_backbone_that_ends_in_linear_layers():
    backbone = dict(type='LeNet5', num_classes=5)
    options = dict(strategy='single_pass', block_after='backbone.features.3')
    cfg = tiny_classifier.model_cfg(pfb=options, backbone=backbone, neck=None)
    cfg['head'] = dict(type='ClsHead')
    init_default_scope('mmpretrain')
    with pytest.raises(ValueError, match=r'LeNet5 cannot take .* Set input_shape=\(channels'):
        MODELS.build(cfg).pfb.prepare()
    cfg['pfb']['input_shape'] = (1, 32, 32)
    model = MODELS.build(cfg).train()
    model.pfb.prepare()
    assert model.pfb.point.num_channels == 16


def test_several_labels_an_image():
    several = dict(type='MultiLabelLinearClsHead')
    model = tiny_classifier.build(head=several)
    samples = tiny_classifier.samples()
    samples[2].set_gt_label([1, 3])
    loss, gradients = step(model, tiny_classifier.images(), samples)
    twin = tiny_classifier.plain_twin(model, several)
    kept = model.pfb.selection.indices
    expected = twin.loss(tiny_classifier.images()[kept], tiny_classifier.some_of(samples, kept))[
        'loss'
    ]
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize(
    ('backbone', 'stage'),
    [
        (dict(type='ResNet', depth=50, base_channels=8, stem_channels=8), 'layer2'),
        (dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8), 'layer1'),
        (dict(type='SwinTransformer', arch='tiny'), 'stages.0.blocks.1'),
        (dict(type='VisionTransformer', arch='deit-tiny'), 'layers.2'),
        (dict(type='ConvNeXt', arch='atto'), 'stages.1'),
        (dict(type='MobileNetV2', widen_factor=0.1), 'layer4'),
        (dict(type='EfficientNet', arch='b0'), 'layers.2'),
        (dict(type='MobileViT', arch='xx_small'), 'layers.1'),  # attends from its third stage on
        (dict(type='VAN', arch='tiny'), 'blocks2.2'),
        (dict(type='VGG', depth=11), 'features.3'),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else None,
)
def test_where_images_are_blocked_by_default(backbone, stage):
    init_default_scope('mmpretrain')
    encoder = MODELS.build(backbone)
    assert early_stage(encoder) == stage
    point = BlockingPoint(tiny.host(encoder), stage)
    point.prepare()
    assert point.num_channels is not None
