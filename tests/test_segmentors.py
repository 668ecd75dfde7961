"""A blocked training step, and all that it must leave alone."""

import copy
from types import SimpleNamespace

import pytest
import tiny
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from pfb_mmseg import PFBMixin
from pfb_mmseg.blocking import least_trainable
from pfb_mmseg.models.samples import select_samples

STRATEGIES = ['two_pass', 'single_pass']


def rare(num_centroids):
    return dict(type='rare', estimator=dict(num_centroids=num_centroids))


def build(model_type='PFBEncoderDecoder', pfb=None, **changes):
    """The small segmentor before its first step: an FCN head, 4 centroids, no dropout."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    pfb = dict(criterion=rare(4)) | (pfb or {})
    config = tiny.model_cfg(model_type, pfb, head=dict(dropout_ratio=0))
    fcn = config['auxiliary_head'] | dict(in_channels=64, in_index=3)
    return MODELS.build(ConfigDict(config | dict(decode_head=fcn) | changes)).train()


def batch(num=8, size=32, seed=0):
    return tiny.images(num, size, seed), tiny.samples(num, size, seed)


def seeded(model, num=8, size=32):
    """The model after enough steps for its centroids to be seeded."""
    seed = 1000
    while not model.pfb.pruner.ready:
        model.loss(*batch(num, size, seed))
        seed += 1
    return model


def watch_heads(model):
    """What each head's ``loss`` gets from now on: (number of rows, data samples)."""
    seen = []
    for head in (model.decode_head, model.auxiliary_head):
        original = head.loss

        def loss(inputs, samples, cfg, original=original):
            seen.append(([len(x) for x in inputs], samples))
            return original(inputs, samples, cfg)

        head.loss = loss
    return seen


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_both_heads_see_the_kept_images_and_their_labels_only_in_order(strategy):
    model = seeded(build(pfb=dict(strategy=strategy)))
    seen = watch_heads(model)
    images, samples = batch()
    model.loss(images, samples)
    kept = model.pfb.selection.indices.tolist()
    assert len(kept) == 4 and kept == sorted(kept)
    assert len(seen) == 2
    for rows, kept_samples in seen:
        assert set(rows) == {4}
        for index, sample in zip(kept, kept_samples, strict=True):
            assert torch.equal(sample.gt_sem_seg.data, samples[index].gt_sem_seg.data)
            assert sample.metainfo == samples[index].metainfo
    assert len(samples) == 8, "the caller's list was changed"


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_nothing_is_pruned_before_the_centroids_are_seeded(strategy):
    model = build(pfb=dict(strategy=strategy, criterion=rare(16)))
    for step in range(4):
        model.loss(*batch(seed=step))
        assert len(model.pfb.selection.indices) == (8 if step < 2 else 4)


def test_both_strategies_choose_alike_from_the_same_state():
    two, one = (build(pfb=dict(strategy=strategy)).double() for strategy in STRATEGIES)
    for model in (two, one):
        for seed in (1000, 1001, 0):
            model.loss(tiny.images(size=32, seed=seed, dtype=torch.float64), tiny.samples(size=32))
    assert torch.equal(two.pfb.selection.indices, one.pfb.selection.indices)
    torch.testing.assert_close(two.pfb.selection.score, one.pfb.selection.score)


@pytest.mark.parametrize('prune_ratio', [0.0, 0.5])
def test_switched_off_or_at_ratio_0_a_step_is_exactly_a_plain_one(prune_ratio):
    blocked, plain = build(pfb=dict(prune_ratio=prune_ratio)), build('EncoderDecoder')
    plain.load_state_dict(blocked.state_dict(), strict=False)
    blocked.pfb.pruning = prune_ratio == 0
    losses, expected = blocked.loss(*batch()), plain.loss(*batch())
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(losses[key], value), key
    assert blocked.pfb.selection is None


def test_iterations_whose_quota_is_the_whole_batch_are_plain_steps():
    model = seeded(build(pfb=dict(prune_ratio=0.25)), num=2)
    kept = []
    for seed in range(8):
        model.loss(*batch(2, seed=seed))
        kept.append(2 if model.pfb.selection is None else len(model.pfb.selection.indices))
    assert sum(kept) == 12 and set(kept) == {1, 2}


def test_inference_and_the_tensor_mode_are_the_plain_segmentors_bit_for_bit():
    blocked, plain = seeded(build()).eval(), build('EncoderDecoder').eval()
    load_state_dict(plain, blocked.state_dict(), strict=False)
    images, samples = batch()
    for sample in samples:
        sample.set_metainfo(dict(ori_shape=(32, 32), pad_shape=(32, 32)))
    step = blocked.pfb.pruner.step
    with torch.no_grad():
        assert torch.equal(blocked(images, mode='tensor'), plain(images, mode='tensor'))
        for a, b in zip(
            blocked(images, copy.deepcopy(samples), mode='predict'),
            plain(images, copy.deepcopy(samples), mode='predict'),
            strict=True,
        ):
            assert torch.equal(a.seg_logits.data, b.seg_logits.data)
            assert torch.equal(a.pred_sem_seg.data, b.pred_sem_seg.data)
        for key, value in plain.loss(images, samples).items():
            assert torch.equal(blocked.loss(images, samples)[key], value)
    assert blocked.pfb.pruner.step == step


def test_checkpoints_go_both_ways_and_carry_the_estimate():
    trained = seeded(build())
    state = trained.state_dict()
    plain = build('EncoderDecoder')
    extra = plain.load_state_dict(state, strict=False)
    assert not extra.missing_keys
    assert all(key.startswith('pfb.') for key in extra.unexpected_keys)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, state[key])

    restored = build()
    restored.load_state_dict(state)
    assert restored.pfb.pruner.ready
    trained.loss(*batch())
    restored.loss(*batch())
    assert torch.equal(trained.pfb.selection.indices, restored.pfb.selection.indices)

    fresh = build()
    with pytest.warns(UserWarning, match='starts afresh'):
        fresh.load_state_dict(plain.state_dict())
    assert not fresh.pfb.pruner.ready
    for key, value in plain.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])


def test_an_estimate_of_another_size_starts_afresh_and_says_so():
    state = seeded(build()).state_dict()
    other = build(pfb=dict(criterion=rare(6)))
    with pytest.warns(UserWarning, match=r'\(6, .*\(4, 32\).*starts afresh'):
        other.load_state_dict(state)
    assert not other.pfb.pruner.ready
    seeded(other).loss(*batch())


def test_score_scale_shrinks_only_the_scoring_pass():
    model = seeded(build(pfb=dict(score_scale=0.5)), size=64)
    sizes = []
    model.backbone.stem.register_forward_pre_hook(
        lambda module, args: sizes.append(tuple(args[0].shape))
    )
    model.loss(*batch(size=64))
    assert sizes == [(8, 3, 32, 32), (4, 3, 64, 64)]


def test_the_random_control_never_runs_a_scoring_pass():
    model = build(pfb=dict(criterion='random'))
    model.pfb.prepare()
    rows = []
    model.backbone.stem.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    chosen = set()
    for seed in range(5):
        model.loss(*batch(seed=seed))
        chosen.add(tuple(model.pfb.selection.indices.tolist()))
    assert rows == [4] * 5
    assert len(chosen) > 1


@pytest.mark.parametrize(
    ('pfb', 'complaint'),
    [
        (dict(prune_ratio='half'), "prune_ratio='half'"),
        (dict(strategy='twopass'), "strategy='twopass'.*did you mean 'two_pass'"),
        (dict(block_after='backbone.layer9'), "no module 'layer9'.*did you mean"),
        (dict(block_after='decode_head.convs'), 'inside the backbone'),
        (dict(prune_rato=0.3), "no option 'prune_rato'.*did you mean 'prune_ratio'"),
        (dict(criterion='rarest'), "criterion='rarest'.*'rare', 'common', .*did you mean 'rare'"),
        (dict(exit='mine'), "exit='mine': expected one of 'auxiliary', 'own'"),
        (dict(exit='own'), "exit='own'.*no early exit.*exit_loss_weight=1"),
        (dict(exit_loss_weight=-1), r'exit_loss_weight=-1: expected a number in \[0, inf\)'),
        (dict(score_scale=0), r'score_scale=0.*\(0, 1\]'),
        (dict(strategy='single_pass', score_scale=0.5), "use strategy='two_pass'"),
        (dict(strategy='single_pass', criterion='divbs'), "DivBS needs.*use strategy='two_pass'"),
        (dict(input_shape=(3, 64)), r'input_shape=\(3, 64\)'),
    ],
)
def test_a_wrong_option_is_refused_when_the_model_is_built(pfb, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        build(pfb=pfb)


def test_two_images_are_kept_where_a_head_normalises_single_pixels():
    aspp = dict(
        type='ASPPHead', in_channels=64, in_index=3, channels=8, dilations=(1, 2),
        num_classes=5, norm_cfg=dict(type='BN'),
    )  # fmt: skip
    model = seeded(build(pfb=dict(prune_ratio=0.9), decode_head=aspp), num=4)
    model.loss(*batch(4))
    assert len(model.pfb.selection.indices) == 2
    assert build(pfb=dict(prune_ratio=0.9)).pfb.pruner.quota.min_keep == 1


@pytest.mark.parametrize(('num_processes', 'least'), [(1, 2), (4, 1)])
def test_one_image_is_enough_where_batchnorm_is_synchronised_over_processes(
    monkeypatch, num_processes, least
):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda group: num_processes)
    pooling = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.SyncBatchNorm(3))
    assert least_trainable(torch.nn.ModuleList([pooling])) == least


def test_single_pass_says_that_it_cannot_narrow_stacked_labels():
    model = build(pfb=dict(strategy='single_pass'))
    with pytest.raises(TypeError, match="use strategy='two_pass'"):
        model.loss(tiny.images(8, 32), torch.zeros(8))


class TakesLabelMaps(EncoderDecoder):
    """A segmentor of someone's own, whose labels come in one tensor (N, 1, H, W)."""

    def loss(self, inputs, data_samples):
        samples = [SegDataSample(gt_sem_seg=PixelData(data=one)) for one in data_samples]
        return super().loss(inputs, samples)


class PFBTakesLabelMaps(PFBMixin, TakesLabelMaps):
    pass


def test_stacked_labels_take_two_passes_where_the_strategy_is_open():
    images, samples = batch()
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
    options = dict(prune_ratio=0.5, criterion='hard')
    found = []
    for strategy in (None, 'two_pass'):
        init_default_scope('mmseg')
        torch.manual_seed(0)
        config = tiny.model_cfg(head=dict(dropout_ratio=0))
        config |= dict(type=PFBTakesLabelMaps, pfb=dict(**options, strategy=strategy))
        model = MODELS.build(config).train()
        model.pfb.prepare()
        assert model.pfb.strategy == strategy or model.pfb.strategy == 'single_pass'
        found.append(model.loss(images, labels))
        assert model.pfb.strategy == 'two_pass' and model.pfb.selection.num_kept == 4
    torch.testing.assert_close(*found, rtol=0, atol=0)


class Decided:
    """A decision, about images on a device for whose values the host does not wait."""

    def __init__(self, indices, device='cuda'):
        indices = torch.tensor(indices)
        positions = SimpleNamespace(device=torch.device(device), tolist=indices.tolist)
        self.selection = SimpleNamespace(indices=positions, num_kept=len(indices))
        self.take = lambda rows: rows[indices]


class TestSelectSamples:
    def test_on_the_host_samples_are_picked_as_they_are(self):
        _, samples = batch(8)
        assert select_samples(samples, Decided([1, 3], 'cpu')) == [samples[1], samples[3]]

    def test_on_a_device_fields_are_gathered_and_metainfo_that_differs_is_left_out(self):
        _, samples = batch(5)
        for i, sample in enumerate(samples):
            sample.gt_edge_map = PixelData(data=torch.full((1, 4, 4), i))
        kept = select_samples(samples, Decided([1, 3]))
        assert [int(sample.gt_edge_map.data[0, 0, 0]) for sample in kept] == [1, 3]
        for sample, index in zip(kept, [1, 3], strict=True):
            assert torch.equal(sample.gt_sem_seg.data, samples[index].gt_sem_seg.data)
        assert all(type(sample) is SegDataSample for sample in kept)
        assert kept[0].metainfo_keys() == ['img_shape']

    def test_labels_that_cannot_be_stacked_are_picked_whole(self):
        samples = [SegDataSample(metainfo=dict(img_path=str(i))) for i in range(3)]
        for i, sample in enumerate(samples):
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, 2 + i, 2))
        assert select_samples(samples, Decided([0, 2])) == [samples[0], samples[2]]

    def test_stacked_labels_stay_stacked(self):
        labels = torch.arange(12).view(4, 3)
        assert torch.equal(select_samples(labels, Decided([0, 2])), labels[[0, 2]])

    @pytest.mark.parametrize('device', ['cpu', 'cuda'])
    def test_plain_tensors_are_labels_too(self, device):
        labels = [torch.tensor(i) for i in range(4)]
        assert select_samples(labels, Decided([2, 3], device)) == [2, 3]
