"""Models that are built otherwise than one would think: what works, and what is refused in words.

What cannot work is refused by PFBHook before the first iteration of a run.
"""

import copy
import time

import pytest
import tiny
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.decode_heads import FCNHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn
from torch.utils.data import DataLoader

from pfb_mmseg import PFBMixin
from pfb_mmseg.models.description import describe
from pfb_mmseg.models.segmentation.exits import AuxiliaryExit, MapExit

STRATEGIES = ['two_pass', 'single_pass']


def config(pfb, factor=1, **changes):
    """The tiny model; its heads take ``factor`` times the channels of a feature map."""
    cfg = tiny.model_cfg(pfb=pfb, head=dict(dropout_ratio=0))
    for name in ('decode_head', 'auxiliary_head'):
        cfg[name]['in_channels'] *= factor
    cfg['data_preprocessor'] = dict(type='SegDataPreProcessor', size=(64, 64))
    return cfg | changes


def build(model_class=None, **options):
    """A model in training mode; of a class of one's own, if there is one."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg = config(**options)
    if model_class is None:
        return MODELS.build(cfg).train()
    cfg.pop('type')
    return type('Blocked', (PFBMixin, model_class), {})(**cfg).train()


def run(tmp_path, model, channels=3, max_iters=1):
    """A run of MMEngine's with PFBHook, on samples with labels of two or five classes."""
    samples = tiny.samples(8)
    for sample in samples:
        sample.gt_sem_seg.data %= getattr(model, 'num_labels', tiny.NUM_CLASSES)
        sample.gt_edge_map = PixelData(data=torch.zeros(1, 64, 64, dtype=torch.long))
    data = [dict(inputs=torch.randn(channels, 64, 64), data_samples=sample) for sample in samples]
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=DataLoader(data, 4, collate_fn=_collate, shuffle=True),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1000),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type='PFBHook', begin=0, end=1.0)],
        default_scope='mmseg',
        log_level='ERROR',
        experiment_name=f'test-{time.perf_counter_ns()}',
    )
    return runner


def _collate(batch):
    return {key: [one[key] for one in batch] for key in batch[0]}


def refused(tmp_path, model, sentence, **options):
    """Before the first iteration, in a sentence."""
    runner = run(tmp_path, model, **options)
    with pytest.raises(ValueError, match=sentence):
        runner.train()
    assert runner.iter == 0


class TwoDates(EncoderDecoder):
    """Change detection: one encoder runs over the earlier and over the later date."""

    def extract_feat(self, inputs):
        dates = [self.backbone(date) for date in inputs.split(3, dim=1)]
        return [torch.cat(maps, dim=1) for maps in zip(*dates, strict=True)]


class PairsInOneTensor(EncoderDecoder):
    """The same in one call of the encoder, which is given twice as many images."""

    def extract_feat(self, inputs):
        maps = self.backbone(torch.cat(inputs.split(3, dim=1)))
        return [torch.cat(one.chunk(2), dim=1) for one in maps]


class Standardised(EncoderDecoder):
    """Normalises each image by itself, before the encoder."""

    def extract_feat(self, inputs):
        return super().extract_feat(standardised(inputs))


def standardised(images):
    mean, std = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    return (images - mean) / std


def pairs():
    return torch.cat([tiny.images(seed=0), tiny.images(seed=1)], dim=1)


class TestEncoderRunsTwice:
    def test_a_single_pass_is_refused_in_words(self, tmp_path):
        pfb = dict(criterion='hard', exit='own', strategy='single_pass')
        model = build(TwoDates, pfb=pfb, factor=2)
        refused(tmp_path, model, "more than once in a step.*strategy='two_pass'", channels=6)

    def test_a_strategy_left_open_becomes_two_passes(self, tmp_path):
        model = build(TwoDates, pfb=dict(criterion='hard', exit='own'), factor=2)
        assert model.pfb.strategy == 'single_pass'
        run(tmp_path, model, channels=6).train()
        assert model.pfb.strategy == 'two_pass'
        assert '(two_pass)' in describe(model.pfb)

    @pytest.mark.parametrize('criterion', ['rare', 'random'])
    def test_two_passes_make_one_choice_of_places(self, criterion):
        pfb = dict(strategy='two_pass') | ({} if criterion == 'rare' else dict(criterion='random'))
        model = build(TwoDates, pfb=pfb, factor=2)
        images, samples = pairs(), tiny.samples()
        model.loss(images, samples)  # seeds the centroids
        twin = copy.deepcopy(model)
        twin.pfb.pruning = False
        losses = model.loss(images, samples)
        (selection,) = model.pfb.selections
        kept = selection.indices.tolist()
        assert len(kept) == 4
        expected = twin.loss(images[kept], [samples[i] for i in kept])
        torch.testing.assert_close(losses, expected, rtol=0, atol=0)

    def test_an_auxiliary_head_that_reads_both_dates_is_no_exit(self, tmp_path):
        model = build(TwoDates, pfb=dict(criterion='hard'), factor=2)
        refused(tmp_path, model, "auxiliary head 0 reads.*exit='own'", channels=6)


class TestExtractFeatPreparesImages:
    @pytest.mark.parametrize('strategy', STRATEGIES)
    @pytest.mark.parametrize('criterion', ['hard', 'rare'])
    def test_what_reaches_the_encoder_is_compared(self, criterion, strategy):
        """Of images that differ in their haze alone."""
        pfb = dict(strategy=strategy) | ({} if criterion == 'rare' else dict(criterion='hard'))
        model, plain = (build(kind, pfb=pfb) for kind in (Standardised, None))
        haze = torch.arange(8.0)[:, None, None, None]
        images, samples = 0.1 * tiny.images() + haze, tiny.samples()
        for _ in range(2):  # the first seeds the centroids
            model.loss(images, samples)
            plain.loss(standardised(images), samples)
        found, expected = (one.pfb.selection for one in (model, plain))
        torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
        assert found.indices.tolist() == expected.indices.tolist()

    @pytest.mark.parametrize('options', [{}, dict(criterion='hard', exit='own')], ids=str)
    def test_pairs_in_one_tensor_are_refused_before_training(self, tmp_path, options):
        model = build(PairsInOneTensor, pfb=options, factor=2)
        refused(tmp_path, model, '8 rows for 4 samples.*extract_feat', channels=6)

    def test_the_way_out_that_the_refusal_names_works(self, tmp_path):
        pfb = dict(criterion='random', exit_loss_weight=0, strategy='two_pass')
        model = build(PairsInOneTensor, pfb=pfb, factor=2)
        run(tmp_path, model, channels=6).train()
        assert model.pfb.selection.num_kept == 2


class EdgeHead(FCNHead):
    """Makes labels of its own, with as many channels as there are classes."""

    def _stack_batch_gt(self, samples):
        labels = super()._stack_batch_gt(samples)
        return (labels != labels.roll(1, -1)).long()


class TestHeadsThatAreNoExits:
    HEAD = tiny.model_cfg()['auxiliary_head'] | dict(dropout_ratio=0)
    BOUNDARY = HEAD | dict(
        type='STDCHead',
        num_classes=2,
        boundary_threshold=0.1,
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce', use_sigmoid=True),
            dict(type='DiceLoss', loss_name='loss_dice'),
        ],
    )
    FEW = HEAD | dict(num_classes=3)
    EDGES = HEAD | dict(type=EdgeHead)

    @pytest.mark.parametrize('name', ['BOUNDARY', 'FEW', 'EDGES'])
    def test_the_head_beside_them_is(self, name):
        odd = getattr(self, name)
        for heads, index in (([odd, self.HEAD], 1), ([self.HEAD, odd], 0)):
            model = build(pfb=dict(criterion='hard'), auxiliary_head=heads)
            assert isinstance(model.pfb.exit, AuxiliaryExit)
            assert model.pfb.exit.head_index == index

    @pytest.mark.parametrize('name', ['BOUNDARY', 'FEW', 'EDGES'])
    def test_where_there_is_no_other_the_exit_is_of_its_own(self, name):
        odd = getattr(self, name)
        assert isinstance(build(pfb=dict(criterion='hard'), auxiliary_head=odd).pfb.exit, MapExit)
        with pytest.raises(ValueError, match="exit='auxiliary': no auxiliary head"):
            build(pfb=dict(criterion='hard', exit='auxiliary'), auxiliary_head=odd)

    def test_the_boundary_head_of_mmsegs_stdc_is_none_and_learns_beside_the_exit(self):
        norm = dict(type='BN')
        fcn = self.HEAD | dict(in_channels=16)
        model = build(
            pfb=dict(criterion='hard'),
            backbone=dict(
                type='STDCContextPathNet',
                backbone_cfg=dict(
                    type='STDCNet', stdc_type='STDCNet1', in_channels=3,
                    channels=(8, 16, 32, 64, 128), bottleneck_type='cat', num_convs=4,
                    norm_cfg=norm, act_cfg=dict(type='ReLU'), with_final_conv=False,
                ),
                last_in_channels=(128, 64),
                out_channels=16,
                ffm_cfg=dict(in_channels=48, out_channels=32, scale_factor=4),
            ),
            decode_head=self.HEAD | dict(in_channels=32, in_index=3),
            auxiliary_head=[
                fcn | dict(in_index=2),
                fcn | dict(in_index=1),
                self.BOUNDARY | dict(in_channels=32, in_index=0),
            ],
        )  # fmt: skip
        assert isinstance(model.pfb.exit, MapExit)
        for _ in range(11):
            losses = model.loss(tiny.images(), tiny.samples())
        assert model.pfb.selection.num_kept == 4
        assert {'aux_0.loss_ce', 'aux_1.loss_ce', 'aux_2.loss_dice', 'exit.loss_ce'} < set(losses)


class TestOwnExitAndTheOptimizer:
    def model(self, **pfb):
        model = build(pfb=dict(criterion='hard', exit='own') | pfb)
        for seed in range(10):
            model.loss(tiny.images(size=32, seed=seed), tiny.samples(size=32, seed=seed))
        return model

    @pytest.mark.parametrize('clip', [None, dict(max_norm=0.1)], ids=str)
    def test_the_model_moves_as_in_the_plain_step_on_what_stays(self, clip):
        model = self.model(exit_loss_weight=0)
        twin = copy.deepcopy(model)
        twin.pfb.pruning = False
        images, samples = tiny.images(), tiny.samples()
        self.step(model, images, samples, clip)
        kept = model.pfb.selection.indices.tolist()
        assert len(kept) == 4
        self.step(twin, images[kept], [samples[i] for i in kept], clip)
        found, expected = (dict(one.named_parameters()) for one in (model, twin))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    def test_it_learns_though_the_optimizer_holds_other_parameters_only(self):
        model = self.model()
        before = [weight.clone() for weight in model.pfb.exit.layers.parameters()]
        optimizer = torch.optim.SGD(model.decode_head.parameters(), 0.1)
        self.step(model, tiny.images(), tiny.samples(), None, optimizer)
        after = model.pfb.exit.layers.parameters()
        assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def step(self, model, images, samples, clip, optimizer=None):
        optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
        batch = dict(inputs=list(images), data_samples=samples)
        model.train_step(batch, OptimWrapper(optimizer, clip_grad=clip))


class OwnLoss(nn.Module):
    loss_name = 'loss_own'

    def forward(self, logits, labels, weight=None, ignore_index=255):
        return nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index)


class TwoOutputsHead(FCNHead):
    def forward(self, inputs):
        return [super().forward(inputs)] * 2

    def loss_by_feat(self, logits, samples):
        return super().loss_by_feat(logits[0], samples)


NORM = dict(type='BN')
FCN = TestHeadsThatAreNoExits.HEAD | dict(in_channels=64, in_index=3)
OHEM = dict(type='OhemCrossEntropy', thres=0.9, min_kept=10)
CASES = {
    'Dice': dict(
        decode_head=FCN
        | dict(
            loss_decode=[
                dict(type='CrossEntropyLoss', loss_name='loss_ce'),
                dict(type='DiceLoss', loss_name='loss_dice'),
            ]
        )
    ),
    'own loss': dict(decode_head=FCN | dict(loss_decode=dict(type=OwnLoss))),
    'two outputs': dict(decode_head=FCN | dict(type=TwoOutputsHead)),
    'DDRNet': dict(
        backbone=dict(type='DDRNet', in_channels=3, channels=8, ppm_channels=8, norm_cfg=NORM),
        decode_head=dict(
            type='DDRHead', in_channels=32, channels=8, num_classes=5, norm_cfg=NORM,
            align_corners=False, loss_decode=[OHEM, OHEM],
        ),
        auxiliary_head=None,
    ),
    'PIDNet': dict(
        backbone=dict(
            type='PIDNet', in_channels=3, channels=8, ppm_channels=8, num_stem_blocks=2,
            num_branch_blocks=3, norm_cfg=NORM,
        ),
        decode_head=dict(
            type='PIDHead', in_channels=32, channels=32, num_classes=5, norm_cfg=NORM,
            align_corners=False,
            loss_decode=[dict(type='CrossEntropyLoss'), OHEM, dict(type='BoundaryLoss'), OHEM],
        ),
        auxiliary_head=None,
    ),
    'EncNet': dict(
        decode_head=dict(
            type='EncHead', in_channels=[16, 32, 64], in_index=(1, 2, 3), channels=16, num_codes=4,
            num_classes=5, norm_cfg=NORM, align_corners=False, use_se_loss=True, add_lateral=False,
            loss_se_decode=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=0.2),
        ),
        auxiliary_head=None,
    ),
}  # fmt: skip
SENTENCES = {
    'Dice': 'DiceLoss of FCNHead gives no loss for each pixel',
    'own loss': 'OwnLoss of FCNHead gives no loss for each pixel',
    'two outputs': 'TwoOutputsHead returns list and not one map of logits',
    'DDRNet': 'OhemCrossEntropy of DDRHead gives no loss for each pixel',
    'PIDNet': 'of PIDHead gives no loss for each pixel',
    'EncNet': 'EncHead returns tuple and not one map of logits',
}


@pytest.mark.parametrize('criterion', ['loss_topk', 'divbs'])
@pytest.mark.parametrize('case', [*CASES])
def test_what_tells_no_loss_of_pixels_is_refused_before_the_first_iteration(
    tmp_path, case, criterion
):
    model = build(pfb=dict(criterion=criterion), **copy.deepcopy(CASES[case]))
    sentence = SENTENCES[case]
    if criterion == 'divbs':
        sentence += '|reads the gradient of a 1x1 convolution conv_seg'
    refused(tmp_path, model, f'({sentence}).*use ')


@pytest.mark.parametrize('case', [*CASES])
def test_the_same_models_train_by_an_early_exit(tmp_path, case):
    """As the refusal says."""
    model = build(pfb=dict(criterion='hard'), **copy.deepcopy(CASES[case]))
    run(tmp_path, model).train()


@pytest.mark.parametrize('criterion', ['loss_topk', 'divbs'])
def test_a_sigmoid_for_each_class_tells_the_loss_that_is_trained(criterion):
    head = FCN | dict(loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    model = build(pfb=dict(criterion=criterion), decode_head=head)
    twin, images, samples = copy.deepcopy(model).eval(), tiny.images(), tiny.samples()
    model.loss(images, samples)
    assert model.pfb.selection.num_kept == 4
    if criterion == 'loss_topk':
        expected = [
            twin.loss(images[i : i + 1], samples[i : i + 1])['decode.loss_ce'] for i in range(8)
        ]
        torch.testing.assert_close(model.pfb.selection.score, torch.stack(expected).detach())
