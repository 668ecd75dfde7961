"""The early exit's loss over all images teaches the shallow part: gradients against float64."""

import copy

import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch.nn import functional as F

STRATEGIES = ['two_pass', 'single_pass']
CRITERIA = ['hard', 'rare', 'random']


def build(criterion='hard', head=None, backbone=None, auxiliary_head=None, **pfb):
    """The tiny model in float64, without dropout, that compares images from the next step on."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    pfb['criterion'] = tiny.RARE if criterion == 'rare' else criterion
    config = tiny.model_cfg(pfb=pfb, head=dict(dropout_ratio=0) | (head or {}), **(backbone or {}))
    if auxiliary_head is not None:
        config['auxiliary_head'] = auxiliary_head
    model = MODELS.build(config).train()
    for module in model.modules():
        if hasattr(module, 'conv_seg'):
            torch.nn.init.normal_(module.conv_seg.weight, std=0.5)
    model.double()
    for seed in range(10 if pfb.get('exit') == 'own' else 1):  # it learns, centroids are seeded
        model.loss(*batch(100 + seed, size=32))
    assert model.pfb.ready
    return model


def batch(seed=0, size=64):
    return tiny.images(size=size, seed=seed, dtype=torch.float64), tiny.samples(
        size=size, seed=seed
    )


def plain(model):
    """A copy without PFB, made of the same modules."""
    twin = copy.deepcopy(model)
    twin.pfb.pruning = False
    return twin


def shallow(net, images):
    backbone = net.backbone
    features = backbone.maxpool(backbone.stem(images))
    return backbone.layer3(backbone.layer2(backbone.layer1(features)))


def cross_entropy(logits, labels, over_labelled=False):
    """Mean over all pixels, of which ignored ones count as 0, or over the labelled ones."""
    logits = F.interpolate(logits, labels.shape[-2:], mode='bilinear', align_corners=False)
    chosen = logits.log_softmax(1).gather(1, (labels % 255)[:, None])[:, 0]
    labelled = labels != 255
    number = labelled.sum() if over_labelled else labels.numel()
    return -(chosen * labelled).sum() / number


def expected_gradients(
    model, images, samples, kept, weight, single_pass, over_labelled=False, own=False
):
    """The exit's loss over all images and the decode head's over the kept ones, by hand.

    Returns:
        Gradients by name, and the exit's loss.
    """
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    features = shallow(model, images)
    if own:
        exit_logits = model.exit_layers(features)
        coarse = labels[:, 4::8, 4::8]
        exit_loss = cross_entropy(exit_logits, coarse, over_labelled)
    else:
        exit_logits = model.auxiliary_head([None, None, features])
        exit_loss = cross_entropy(exit_logits, labels, over_labelled)
    deep = model.backbone.layer4(features[kept] if single_pass else shallow(model, images[kept]))
    logits = model.decode_head([None, None, None, deep])
    loss = cross_entropy(logits, labels[kept], over_labelled) + weight * exit_loss
    if own:
        auxiliary = features[kept] if single_pass else shallow(model, images[kept])
        logits = model.auxiliary_head([None, None, auxiliary])
        loss = loss + cross_entropy(logits, labels[kept], over_labelled)
    loss.backward()
    gradients = tiny.gradients(model)
    return {k: v for k, v in gradients.items() if not k.startswith('exit_layers')}, exit_loss


def blocked(model, images, samples):
    losses = model.loss(images, samples)
    tiny.total(losses).backward()
    kept = model.pfb.selection.indices.tolist()
    assert len(kept) == 4
    return losses, tiny.gradients(model), kept


def check(loss, expected_loss, gradients, expected_gradients):
    """The exits' losses are computed in float32, all else in float64."""
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('criterion', CRITERIA)
class TestGradients:
    @pytest.mark.parametrize('weight', [0.4, 1.0])
    def test_with_the_auxiliary_head(self, criterion, weight, strategy):
        model = build(criterion, exit_loss_weight=weight, strategy=strategy)
        twin, (images, samples) = plain(model), batch()
        losses, found, kept = blocked(model, images, samples)
        expected, exit_loss = expected_gradients(
            twin, images, samples, kept, weight, strategy == 'single_pass'
        )
        check(losses['exit.loss_ce'], weight * exit_loss, found, expected)

    def test_with_an_exit_of_its_own(self, criterion, strategy):
        model = build(criterion, exit_loss_weight=0.7, exit='own', strategy=strategy)
        twin, (images, samples) = plain(model), batch()
        twin.exit_layers = copy.deepcopy(model.pfb.exit.layers).double()
        losses, found, kept = blocked(model, images, samples)
        expected, exit_loss = expected_gradients(
            twin, images, samples, kept, 0.7, strategy == 'single_pass', own=True
        )
        check(losses['exit.loss_ce'], 0.7 * exit_loss, found, expected)


CE = dict(type='CrossEntropyLoss', loss_name='loss_ce')
LOSSES = {
    'over all pixels': CE,
    'over labelled pixels': CE | dict(avg_non_ignore=True),
    'classes weighed': CE | dict(class_weight=[0.1, 2.0, 0.5, 3.0, 0.2]),
    'cross entropy and Dice': [CE, dict(type='DiceLoss', loss_name='loss_dice')],
    'a sigmoid for each class': CE | dict(use_sigmoid=True),
    'counting for 0.4': CE | dict(loss_weight=0.4),
}


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('loss', [*LOSSES])
def test_with_weight_1_it_is_the_heads_own_loss_over_all_images_counted_once(loss, strategy):
    functions = copy.deepcopy(LOSSES[loss])
    model = build(head=dict(loss_decode=functions), strategy=strategy)
    images, samples = batch()
    for i, sample in enumerate(samples):
        sample.gt_sem_seg.data[:, : 8 * i] = 255
    taught = model.loss(images, samples)
    model.pfb.pruning = False
    plain_losses = model.loss(images, samples)
    names = {name for name in plain_losses if name.startswith('aux.loss')}
    assert {name.replace('exit', 'aux') for name in taught if 'exit.loss' in name} == names
    scale = functions.get('loss_weight', 1) if isinstance(functions, dict) else 1
    for name in names:
        found, expected = taught[name.replace('aux', 'exit')], plain_losses[name] / scale
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('exit', ['auxiliary', 'own'])
@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_at_ratio_0_a_step_is_exactly_a_plain_one(weight, strategy, exit):
    init_default_scope('mmseg')
    pfb = dict(criterion='hard', prune_ratio=0, exit_loss_weight=weight, strategy=strategy)
    model = MODELS.build(tiny.model_cfg(pfb=pfb | dict(exit=exit))).train()
    twin, (images, samples) = tiny.plain_twin(model), (tiny.images(), tiny.samples())
    results = []
    for one in (model, twin):
        torch.manual_seed(5)
        losses = one.loss(images, samples)
        tiny.total(losses).backward()
        results.append((losses, tiny.gradients(one)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('criterion', CRITERIA)
def test_at_weight_0_the_images_that_stop_teach_nothing(criterion, strategy):
    model = build(criterion, exit_loss_weight=0, strategy=strategy)
    images, samples = batch()
    losses, _, _ = blocked(model, images, samples)
    assert set(losses) == {'decode.loss_ce', 'decode.acc_seg', 'aux.loss_ce', 'aux.acc_seg'}


class TestUnlabelled:
    @pytest.mark.parametrize('strategy', STRATEGIES)
    @pytest.mark.parametrize('exit', ['auxiliary', 'own'])
    @pytest.mark.parametrize('over_labelled', [False, True])
    def test_images_teach_by_their_labelled_pixels(self, over_labelled, exit, strategy):
        """Two have none at all, one a part."""
        loss = dict(type='CrossEntropyLoss', avg_non_ignore=over_labelled)
        model = build(head=dict(loss_decode=loss), exit=exit, strategy=strategy)
        twin, (images, samples) = plain(model), batch()
        for i in (1, 6):
            samples[i].gt_sem_seg.data.fill_(255)
        samples[3].gt_sem_seg.data[:, :40] = 255
        own = exit == 'own'
        if own:
            twin.exit_layers = copy.deepcopy(model.pfb.exit.layers).double()
        losses, found, kept = blocked(model, images, samples)
        assert not {1, 6} & set(kept)
        expected, exit_loss = expected_gradients(
            twin, images, samples, kept, 1.0, strategy == 'single_pass', over_labelled, own
        )
        check(losses['exit.loss_ce'], exit_loss, found, expected)

    @pytest.mark.parametrize('strategy', STRATEGIES)
    @pytest.mark.parametrize('exit', ['auxiliary', 'own'])
    @pytest.mark.parametrize('over_labelled', [False, True])
    def test_a_batch_without_any_labelled_pixel_breaks_nothing(self, over_labelled, exit, strategy):
        loss = dict(type='CrossEntropyLoss', avg_non_ignore=over_labelled)
        model = build(head=dict(loss_decode=loss), exit=exit, strategy=strategy)
        images, samples = batch()
        for sample in samples:
            sample.gt_sem_seg.data.fill_(255)
        losses, found, _ = blocked(model, images, samples)
        assert losses['exit.loss_ce'] == 0
        assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('exit', ['auxiliary', 'own'])
def test_an_image_that_is_not_finite_spoils_neither_scores_nor_losses_of_the_others(exit, strategy):
    model = build(exit=exit, strategy=strategy, backbone=dict(norm_eval=True))
    images, samples = batch()
    images[[2, 5], 0, 3, 3] = torch.tensor([float('nan'), float('inf')], dtype=torch.float64)
    losses = model.loss(images, samples)
    selection = model.pfb.selection
    assert selection.score.isnan().nonzero().flatten().tolist() == [2, 5]
    assert not {2, 5} & set(selection.indices.tolist()) and selection.num_kept == 4
    assert all(value.isfinite() for value in losses.values())
    if exit == 'own':
        assert all(weight.isfinite().all() for weight in model.pfb.exit.layers.parameters())
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name


class TestNames:
    @pytest.mark.parametrize('strategy', STRATEGIES)
    def test_a_head_that_taught_all_images_appears_once(self, strategy):
        model = build('hard', strategy=strategy)
        losses = model.loss(*batch())
        assert set(losses) == {'decode.loss_ce', 'decode.acc_seg', 'exit.loss_ce'}
        model.pfb.pruning = False
        assert {'aux.loss_ce', 'aux.acc_seg'} < set(model.loss(*batch()))

    @pytest.mark.parametrize('strategy', STRATEGIES)
    def test_of_several_heads_only_the_one_that_taught_is_missing(self, strategy):
        head = tiny.model_cfg()['auxiliary_head'] | dict(dropout_ratio=0)
        heads = [head | dict(in_index=1, in_channels=16), head]
        losses = build('hard', strategy=strategy, auxiliary_head=heads).loss(*batch())
        assert {'aux_0.loss_ce', 'aux_0.acc_seg', 'exit.loss_ce'} < set(losses)
        assert not any(name.startswith('aux_1.') for name in losses)

    @pytest.mark.parametrize('strategy', STRATEGIES)
    def test_beside_an_exit_of_its_own_the_head_learns_as_ever(self, strategy):
        losses = build('hard', exit='own', strategy=strategy).loss(*batch())
        assert {'aux.loss_ce', 'exit.loss_ce'} < set(losses)


def test_the_auxiliary_exit_reads_the_end_of_the_stage_and_not_a_block_that_starts_as_identity():
    """The last norm of a residual block may start with zeros: then it returns what it is given."""
    init_default_scope('mmseg')
    model = MODELS.build(tiny.model_cfg(pfb=dict(criterion='hard')))
    for name, parameter in model.backbone.named_parameters():
        if name.endswith('bn2.weight'):
            torch.nn.init.zeros_(parameter)
    model.pfb.prepare()
    assert model.pfb.exit.module is model.pfb.point.module
