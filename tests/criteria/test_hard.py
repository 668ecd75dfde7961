"""The images of highest loss at an exit stay; the exit is the model's own auxiliary head.

The exit teaches nothing here unless a test says so, see test_teaching.py.
"""

import copy

import numpy as np
import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn import functional as F

from pfb_mmseg.core import BatchPruner, Candidates
from pfb_mmseg.models.exits import OwnExit
from pfb_mmseg.models.segmentation.exits import AuxiliaryExit, as_maps

HARD = dict(criterion='hard', exit_loss_weight=0)


def nearest(labels, height, width):
    """(H, W) labels at the middle of each of (height, width) cells."""
    rows = [int((i + 0.5) * labels.shape[0] / height) for i in range(height)]
    columns = [int((i + 0.5) * labels.shape[1] / width) for i in range(width)]
    return labels[np.ix_(rows, columns)]


def cross_entropy(logits, labels, weight=None):
    """Mean over all pixels of (C, H, W) logits, ignored ones as 0."""
    return summed(logits, labels, weight) / labels.size


def over_labelled(logits, labels):
    """Mean over the labelled pixels, 0 where there is none."""
    return summed(logits, labels) / max((labels != 255).sum(), 1)


def summed(logits, labels, weight=None):
    """Cross entropy of (C, H, W) logits summed over the pixels that are not ignored."""
    log_sum = np.log(np.exp(logits - logits.max(0)).sum(0)) + logits.max(0)
    total = 0.0
    for (y, x), label in np.ndenumerate(labels):
        if label != 255:
            factor = 1.0 if weight is None else weight[label]
            total += factor * (log_sum[y, x] - logits[label, y, x])
    return total


def binary_cross_entropy(logits, labels):
    """Mean over all pixels of (1, H, W) logits, ignored ones as 0."""
    chance = 1 / (1 + np.exp(-logits[0]))
    pixels = -np.where(labels == 1, np.log(chance), np.log(1 - chance))
    return np.where(labels == 255, 0, pixels).mean()


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.eval()
    return model


def expected_losses(
    model, images, samples, head=None, index=2, loss=cross_entropy, full_size=False
):
    """The score, in float64, from a copy of the model that is run as a whole.

    Compared at the size of the logits, or at that of the labels where the exit teaches.
    """
    twin = without_dropout(copy.deepcopy(model).double())
    head = twin.auxiliary_head if head is None else twin.auxiliary_head[head]
    with torch.no_grad():
        maps = twin.backbone(images.double())[index]
        logits = head.cls_seg(head._forward_feature([maps] * 4))
        if full_size:
            logits = F.interpolate(logits, images.shape[-2:], mode='bilinear')
    logits = logits.numpy()
    labels = [sample.gt_sem_seg.data[0].numpy() for sample in samples]
    pairs = zip(logits, labels, strict=True)
    return np.array([loss(one, nearest(label, *one.shape[1:])) for one, label in pairs])


def build(pfb=None, head=None, **changes):
    """The tiny model, whose logits tell images apart and whose running statistics are not 0, 1."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model_type = changes.pop('type', 'PFBEncoderDecoder')
    model = MODELS.build(tiny.model_cfg(model_type, HARD | (pfb or {}), head) | changes).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if hasattr(module, 'conv_seg'):
            nn.init.normal_(module.conv_seg.weight, std=0.5)
    return model


def step(model, images=None, samples=None):
    """The selection of one training step."""
    images = tiny.images() if images is None else images
    samples = tiny.samples() if samples is None else samples
    losses = model.loss(images, samples)
    tiny.total(losses).backward()
    assert all(value.isfinite().all() for value in losses.values())
    return model.pfb.selection


def highest(scores, num):
    return sorted(np.argsort(scores)[-num:].tolist())


def check(model, images=None, samples=None, num_kept=4, **options):
    """One step chooses by the losses that the oracle finds."""
    images = tiny.images() if images is None else images
    samples = tiny.samples() if samples is None else samples
    model.pfb.prepare()
    expected = expected_losses(model, images, samples, **options)
    selection = step(model, images, samples)
    assert selection.score.dtype == torch.float32
    np.testing.assert_allclose(selection.score.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert selection.indices.tolist() == highest(expected, num_kept)
    return expected


def backbone(**changes):
    return tiny.model_cfg(pfb=HARD)['backbone'] | changes


class TestScore:
    @pytest.mark.parametrize('weight', [0, 1])
    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    def test_is_the_cross_entropy_of_the_head_on_the_blocked_features(self, strategy, weight):
        pfb = dict(strategy=strategy, exit_loss_weight=weight)
        check(build(pfb, head=dict(dropout_ratio=0)), full_size=bool(weight))

    def test_a_quarter_may_be_left_out(self):
        check(build(dict(prune_ratio=0.25)), num_kept=6)

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    @pytest.mark.parametrize('changes', [dict(norm_eval=True), dict(frozen_stages=2)], ids=str)
    def test_follows_the_modes_of_frozen_layers(self, changes, strategy):
        check(build(dict(strategy=strategy), backbone=backbone(**changes)))

    def test_of_shrunk_images_reads_the_labels_at_the_coarser_grid(self):
        model = build(dict(score_scale=0.5))
        images, samples = tiny.images(), tiny.samples()
        small = F.interpolate(images, scale_factor=0.5, mode='bilinear')
        expected = expected_losses(model, small, samples)
        np.testing.assert_allclose(step(model, images, samples).score, expected, rtol=1e-4)

    def test_has_a_name_and_is_no_density(self):
        selection = step(build())
        assert selection.score_name == 'exit_loss'

    def test_labels_of_another_size_than_a_multiple_are_read_in_the_middle(self):
        images, samples = tiny.images(size=52), tiny.samples(size=52)
        check(build(), images, samples)

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    def test_leaves_the_head_as_it_was(self, strategy):
        """Its running statistics, which the training pass then moves once."""
        model = build(dict(strategy=strategy))
        model.pfb.prepare()
        moved = []
        norm = model.auxiliary_head.convs[0].bn
        norm.register_forward_hook(lambda *_: moved.append(norm.num_batches_tracked.item()))
        step(model)
        assert moved == [0, 1]

    def test_does_not_change_the_training_step(self):
        model = build(head=dict(dropout_ratio=0.5))
        twin = tiny.plain_twin(model, head=dict(dropout_ratio=0.5))
        images, samples = tiny.images(), tiny.samples()
        model.pfb.prepare()
        torch.manual_seed(3)
        losses = model.loss(images, samples)
        kept = model.pfb.selection.indices.tolist()
        torch.manual_seed(3)
        expected = twin.loss(images[kept], [samples[i] for i in kept])
        torch.testing.assert_close(losses, expected, rtol=0, atol=0)

    def test_both_strategies_choose_alike_where_normalisation_is_frozen(self):
        one, two = (
            build(dict(strategy=strategy), backbone=backbone(norm_eval=True))
            for strategy in ('single_pass', 'two_pass')
        )
        first, second = step(one), step(two)
        assert torch.equal(first.indices, second.indices)
        torch.testing.assert_close(first.score, second.score, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    def test_in_bfloat16_is_the_same_but_for_rounding(self, strategy):
        model = build(dict(strategy=strategy))
        images, samples = tiny.images(), tiny.samples()
        expected = expected_losses(model, images, samples)
        with torch.autocast('cpu', torch.bfloat16):
            selection = step(model, images, samples)
        assert selection.score.dtype == torch.float32
        np.testing.assert_allclose(selection.score, expected, rtol=0.05, atol=0.05)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


class TestLabels:
    @pytest.mark.parametrize(
        ('avg_non_ignore', 'loss'), [(False, cross_entropy), (True, over_labelled)]
    )
    @pytest.mark.parametrize('weight', [0, 1])
    def test_of_partly_labelled_images_the_loss_is_the_one_that_is_trained(
        self, weight, avg_non_ignore, loss
    ):
        """Without avg_non_ignore what has most labels has the highest loss, else it does not."""
        samples = tiny.samples()
        for i, sample in enumerate(samples):
            sample.gt_sem_seg.data[:, : 8 * i] = 255
        head = dict(
            dropout_ratio=0,
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=avg_non_ignore),
        )
        model = build(dict(exit_loss_weight=weight), head=head)
        expected = check(model, samples=samples, loss=loss, full_size=bool(weight))
        assert (expected > 0).all()

    def test_another_index_may_be_the_ignored_one(self):
        head = dict(ignore_index=3)
        model, samples = build(head=head), tiny.samples()
        images = tiny.images()
        marked = copy.deepcopy(samples)
        for sample in marked:
            sample.gt_sem_seg.data[sample.gt_sem_seg.data == 3] = 255
        expected = expected_losses(model, images, marked)
        np.testing.assert_allclose(step(model, images, samples).score, expected, rtol=1e-4)

    @pytest.mark.parametrize('unlabelled', [[0, 5], [0, 1, 2, 3]])
    def test_images_without_a_labelled_pixel_score_0_and_go_first(self, unlabelled):
        samples = tiny.samples()
        for i in unlabelled:
            samples[i].gt_sem_seg.data.fill_(255)
        model = build()
        check(model, samples=samples)
        selection = model.pfb.selection
        assert selection.score[unlabelled].tolist() == [0] * len(unlabelled)
        assert not set(unlabelled) & set(selection.indices.tolist())

    def test_a_batch_without_a_labelled_pixel_still_keeps_its_number(self):
        samples = tiny.samples()
        for sample in samples:
            sample.gt_sem_seg.data.fill_(255)
        selection = step(build(), samples=samples)
        assert selection.indices.tolist() == [0, 1, 2, 3]
        assert not selection.score.any()

    def test_samples_without_labels_are_refused_in_a_sentence(self):
        with pytest.raises(ValueError, match="gt_sem_seg, which a data sample lacks.*'rare'"):
            step(build(), samples=[SegDataSample() for _ in range(8)])


class Scores(Candidates):
    def __init__(self, scores):
        super().__init__(len(scores), torch.device('cpu'))
        self._scores = torch.tensor(scores)

    def exit_losses(self):
        return self._scores


def kept_of(scores, prune_ratio=0.5, **options):
    pruner = BatchPruner(prune_ratio, criterion=dict(type='hard', **options))
    with pruner.select(Scores(scores)) as decision:
        return decision.selection


class TestSkip:
    @pytest.mark.parametrize(
        ('skip', 'kept'),
        [
            (0.0, [1, 3, 5, 6]),
            (0.12, [1, 3, 5, 6]),  # less than an image
            (0.125, [0, 1, 3, 5]),
            (0.25, [0, 3, 5, 7]),
        ],
    )
    def test_the_very_highest_are_left_out(self, skip, kept):
        scores = [4.0, 7.0, 1.0, 6.0, 2.0, 5.0, 8.0, 3.0]
        selection = kept_of(scores, skip=skip)
        assert selection.indices.tolist() == kept
        assert selection.score.tolist() == scores

    @pytest.mark.parametrize(('prune_ratio', 'skip'), [(0.3, 0.3), (0.3, 0.5), (0, 0.1)])
    def test_as_much_as_is_pruned_would_keep_the_easiest_and_is_refused(self, prune_ratio, skip):
        with pytest.raises(ValueError, match=f'skip={skip} .*prune_ratio={prune_ratio} in all'):
            BatchPruner(prune_ratio, criterion=dict(type='hard', skip=skip))

    def test_what_is_not_finite_is_not_what_is_skipped(self):
        nan = float('nan')
        assert kept_of([nan, 4.0, 3.0, nan, 2.0, 1.0, nan, 0.0], skip=0.125).indices.tolist() == [
            2, 4, 5, 7,
        ]  # fmt: skip

    def test_through_a_training_step(self):
        model = build(dict(criterion=dict(type='hard', skip=0.25)))
        images, samples = tiny.images(), tiny.samples()
        expected = expected_losses(model, images, samples)
        selection = step(model, images, samples)
        assert selection.indices.tolist() == sorted(np.argsort(expected)[2:6].tolist())


def weighted(logits, labels):
    return 0.4 * cross_entropy(logits, labels, weight=[1, 2, 0.5, 3, 1])


class TestHeads:
    @pytest.mark.parametrize(
        'loss_decode',
        [
            dict(type='DiceLoss'),
            dict(type='LovaszLoss', reduction='none'),
            dict(type='CrossEntropyLoss', use_sigmoid=True),
            [dict(type='CrossEntropyLoss', loss_weight=0.4), dict(type='DiceLoss')],
        ],
        ids=str,
    )
    def test_of_other_losses_cross_entropy_ranks(self, loss_decode):
        check(build(head=dict(loss_decode=loss_decode)))

    def test_cross_entropy_keeps_its_weights(self):
        loss = dict(type='CrossEntropyLoss', loss_weight=0.4, class_weight=[1, 2, 0.5, 3, 1])
        check(build(head=dict(loss_decode=loss)), loss=weighted)

    @pytest.mark.parametrize('ignored', [False, True])
    def test_binary(self, ignored):
        head = dict(
            num_classes=2,
            out_channels=1,
            threshold=0.3,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
        )
        samples = tiny.samples()
        for i, sample in enumerate(samples):
            data = sample.gt_sem_seg.data.clamp_(max=1)
            if ignored and i % 2:
                data[:, :16] = 255
        check(build(head=head), samples=samples, loss=binary_cross_entropy)

    def test_of_a_cascade(self):
        config = tiny.model_cfg('PFBCascadeEncoderDecoder', HARD)
        first = config['decode_head'] | dict(type='FCNHead')
        first.pop('dilations')
        last = first | dict(type='OCRHead', ocr_channels=8)
        check(build(type='PFBCascadeEncoderDecoder', num_stages=2, decode_head=[first, last]))

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    @pytest.mark.parametrize(
        ('indices', 'block_after', 'read'),
        [
            ([1, 2], 'backbone.layer3', 1),
            ([2, 1], 'backbone.layer3', 0),
            ([1, 2], 'backbone.layer2', 0),
            ([1, 2], 'backbone.layer3.0', 0),  # the stage's output is not there yet
            ([0, 3, 1], 'backbone.layer3', 2),
            ([-3, -2], 'backbone.layer3', 1),  # counted from the last
            ([-2, -3], 'backbone.layer2', 1),
        ],
        ids=str,
    )
    def test_of_several_the_deepest_that_reads_what_is_there(
        self, indices, block_after, read, strategy
    ):
        channels = [8, 16, 32, 64]
        head = tiny.model_cfg(pfb=HARD)['auxiliary_head']
        heads = [head | dict(in_index=i, in_channels=channels[i]) for i in indices]
        pfb = dict(block_after=block_after, strategy=strategy)
        model = build(pfb, auxiliary_head=heads)
        assert isinstance(model.pfb.exit, AuxiliaryExit)
        assert model.pfb.exit.head_index == read
        check(model, head=read, index=indices[read])

    @pytest.mark.parametrize(
        ('changes', 'pfb'),
        [
            (dict(auxiliary_head=None), {}),
            ({}, dict(block_after='backbone.layer2')),
            ({}, dict(block_after='backbone.stem')),
        ],
        ids=['none', 'deeper', 'before all stages'],
    )
    def test_where_none_reads_what_is_there_the_exit_is_of_its_own(self, changes, pfb):
        model = build(pfb, **changes)
        assert isinstance(model.pfb.exit, OwnExit)
        with pytest.raises(ValueError, match="exit='auxiliary': no auxiliary head.*leave exit out"):
            build(pfb | dict(exit='auxiliary'), **changes)

    def test_an_exit_of_its_own_may_be_asked_for(self):
        model = build(dict(exit='own'))
        assert isinstance(model.pfb.exit, OwnExit)


def transformer(kind, **pfb):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    config = tiny.model_cfg(pfb=HARD | pfb, head=dict(norm_cfg=dict(type='BN')))
    if kind == 'swin':
        config['backbone'] = dict(
            type='SwinTransformer', embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2),
            window_size=4, pretrain_img_size=64, drop_path_rate=0.5,
        )  # fmt: skip
    else:
        config['backbone'] = dict(
            type='VisionTransformer', img_size=(64, 64), patch_size=8, embed_dims=32, num_layers=4,
            num_heads=2, out_indices=(0, 1, 2, 3), with_cls_token=kind == 'vit',
            output_cls_token=False, drop_path_rate=0.5,
        )  # fmt: skip
        config['decode_head']['in_channels'] = 32
    model = MODELS.build(config).train()
    nn.init.normal_(model.auxiliary_head.conv_seg.weight, std=0.5)
    return model


class TestTransformers:
    def expected(self, model, images, samples):
        """LayerNorm has no modes: the whole backbone without stochastic depth."""
        twin = copy.deepcopy(model).double()
        twin.backbone.eval()
        head = without_dropout(twin).auxiliary_head
        with torch.no_grad():
            logits = head(twin.backbone(images.double())).numpy()
        labels = [sample.gt_sem_seg.data[0].numpy() for sample in samples]
        return [
            cross_entropy(one, nearest(label, *one.shape[1:]))
            for one, label in zip(logits, labels, strict=True)
        ]

    @pytest.mark.parametrize('kind', ['swin', 'vit', 'vit without class token'])
    def test_score_is_the_loss_of_the_head_on_what_it_reads(self, kind):
        model = transformer(kind)
        images, samples = tiny.images(), tiny.samples()
        expected = self.expected(model, images, samples)
        selection = step(model, images, samples)
        np.testing.assert_allclose(selection.score, expected, rtol=1e-4)
        assert selection.indices.tolist() == highest(expected, 4)
        # Swin normalises what leaves the backbone behind the stage that is blocked.
        assert model.pfb.exit.behind is (kind == 'swin')

    def test_what_runs_behind_the_blocking_point_is_refused_in_a_single_pass(self):
        model = transformer('swin', strategy='single_pass')
        with pytest.raises(ValueError, match="behind the blocking point.*exit='own'"):
            step(model)

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    @pytest.mark.parametrize('kind', ['swin', 'vit', 'vit without class token'])
    def test_an_exit_of_its_own_reads_tokens_as_maps(self, kind, strategy):
        model = transformer(kind, exit='own', exit_loss_weight=1, strategy=strategy)
        model.pfb.prepare()
        seen = []
        model.pfb.exit.layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for _ in range(11):
            selection = step(model)
        assert selection.num_kept == 4
        maps = seen[-1]
        assert maps.shape[:2] == (8, 32)
        assert maps.shape[2:] == ((4, 4) if kind == 'swin' else (8, 8))


class TestAsMaps:
    MAPS = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)

    @pytest.mark.parametrize('size', [(64, 96), (60, 90), (58, 88)])
    @pytest.mark.parametrize('layout', ['NCHW', 'NHWC', 'NLC', 'class token', 'tuple', 'list'])
    def test_every_layout_is_read_back(self, layout, size):
        tokens = self.MAPS.flatten(2).transpose(1, 2)
        output = {
            'NCHW': self.MAPS,
            'NHWC': self.MAPS.permute(0, 2, 3, 1),
            'NLC': tokens,
            'class token': torch.cat([torch.full((2, 1, 3), -1.0), tokens], dim=1),
            'tuple': (tokens, None),
            'list': [tokens],
        }[layout]
        maps = as_maps(output, 1 if layout == 'NCHW' else -1, size)
        assert torch.equal(maps, self.MAPS)

    def test_tokens_that_are_no_grid_are_refused(self):
        with pytest.raises(ValueError, match='23 tokens for images of 64x96 are no grid'):
            as_maps(torch.zeros(2, 23, 3), -1, (64, 96))


def test_a_blocking_point_whose_head_reads_something_else_is_told_before_training():
    class Doubled(MODELS.get('ResNetV1c')):
        def forward(self, x):
            return [2 * output + 1 for output in super().forward(x)]

    model = build()
    model.backbone.__class__ = Doubled
    with pytest.raises(ValueError, match=r"reads map 2 .*not there yet.*exit='own'"):
        model.pfb.prepare()
