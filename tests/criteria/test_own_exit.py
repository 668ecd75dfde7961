"""An exit of its own: trained beside the model, on the images that stay, and in nobody's way."""

import json

import numpy as np
import pytest
import tiny
import torch
from demo_runs import demo_config, train
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import DepthEstimator
from mmseg.registry import MODELS
from torch import nn
from torch.nn import functional as F

from pfb_mmseg import PFBMixin

STRATEGIES = ['two_pass', 'single_pass']


def own(**options):
    return dict(type='hard', exit='own', **options)


def build(warmup=0, head=None, pool=1, class_balance=0, **pfb):
    criterion = own(warmup=warmup, pool=pool, class_balance=class_balance)
    model = tiny.build(dict(criterion=criterion) | pfb, head=head)
    nn.init.normal_(model.pfb.exit.layers[-1].weight, std=0.5)
    return model


def watch_features(model):
    """What the blocking point returns from now on, in float64."""
    seen = []
    model.backbone.layer3.register_forward_hook(
        lambda module, args, output: seen.append(output.detach().double())
    )
    return seen


def explicit_losses(exit, maps, samples):
    """(N,) float64, with a graph to (the copies of) the exit's weights."""
    conv, _, _, last = exit.layers
    weights = [p.detach().double().requires_grad_() for p in exit.parameters()]
    names = [name for name, _ in exit.named_parameters()]
    weight = dict(zip(names, weights, strict=True))
    hidden = F.conv2d(maps, weight['layers.0.weight'], padding=conv.padding)
    mean, var = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), correction=0)
    shape = (1, -1, 1, 1)
    hidden = (hidden - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    hidden = hidden * weight['layers.1.weight'].view(shape) + weight['layers.1.bias'].view(shape)
    logits = F.conv2d(hidden.relu(), weight['layers.3.weight'], weight['layers.3.bias'])
    losses = []
    for one, sample in zip(logits, samples, strict=True):
        labels = sample.gt_sem_seg.data[0]
        step = [labels.shape[i] // one.shape[1 + i] for i in range(2)]
        labels = labels[step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
        chosen = one.log_softmax(0).gather(0, (labels % 255)[None])[0]
        areas = torch.stack([(labels == label).sum() for label in labels.flatten()]).double()
        weights = areas.view(labels.shape) ** -exit.class_balance
        losses.append(-(chosen * (labels != 255) * weights).sum() / weights.sum())
    assert last.out_channels == tiny.NUM_CLASSES
    return torch.stack(losses), weight


@pytest.mark.parametrize('strategy', STRATEGIES)
class TestStep:
    @pytest.mark.parametrize('balance', [0, 0.5])
    def test_the_highest_of_its_losses_stay(self, strategy, balance):
        model = build(strategy=strategy, class_balance=balance)
        seen = watch_features(model)
        samples = tiny.samples()
        samples[3].gt_sem_seg.data[:, :32] = 255
        model.loss(tiny.images(), samples)
        expected, _ = explicit_losses(model.pfb.exit, seen[0], samples)
        selection = model.pfb.selection
        torch.testing.assert_close(
            selection.score.double(), expected.detach(), rtol=1e-4, atol=1e-5
        )
        assert selection.indices.tolist() == sorted(expected.argsort()[4:].tolist())

    @pytest.mark.parametrize('balance', [0, 0.5])
    def test_it_learns_from_the_images_that_stay_and_from_no_other(self, strategy, balance):
        model = build(strategy=strategy, class_balance=balance)
        seen = watch_features(model)
        samples = tiny.samples()
        losses = model.loss(tiny.images(), samples)
        found = losses['exit.loss_ce']
        found.backward()
        expected, weight = explicit_losses(model.pfb.exit, seen[0], samples)
        kept = model.pfb.selection.indices
        expected = expected[kept].mean()
        expected.backward()
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
        for name, parameter in model.pfb.exit.named_parameters():
            torch.testing.assert_close(
                parameter.grad.double(), weight[name].grad, rtol=1e-3, atol=1e-5
            )
        others = [p for n, p in model.named_parameters() if not n.startswith('pfb.exit.')]
        assert all(p.grad is None for p in others)

    def test_the_rest_of_the_model_is_trained_as_without_it(self, strategy):
        """Bit by bit, dropout included: it draws no random number."""
        model = build(strategy=strategy)
        images, samples = tiny.images(), tiny.samples()
        torch.manual_seed(7)
        losses = model.loss(images, samples)
        tiny.total(losses).backward()
        found = tiny.gradients(model)
        buffers = dict(model.backbone.named_buffers())
        assert all(found[name].any() for name in found if name.startswith('pfb.exit.layers.3'))
        # The same choice by a criterion that has no exit.
        kept = model.pfb.selection.indices

        twin = build(strategy=strategy)
        twin.pfb.exit, twin.pfb.pruner.criterion = None, Fixed(kept)
        torch.manual_seed(7)
        expected = twin.loss(images, samples)
        tiny.total(expected).backward()
        assert losses.keys() - expected.keys() == {'exit.loss_ce'}
        for name, gradient in tiny.gradients(twin).items():
            assert torch.equal(found[name], gradient), name
        for name, value in twin.backbone.named_buffers():
            assert torch.equal(buffers[name], value), name

    def test_it_learns_from_all_images_before_it_decides(self, strategy):
        model = build(warmup=2, strategy=strategy)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        kept = []
        for seed in range(4):
            before = [p.detach().clone() for p in model.pfb.exit.parameters()]
            optimizer.zero_grad()
            tiny.total(model.loss(tiny.images(seed=seed), tiny.samples(seed=seed))).backward()
            optimizer.step()
            kept.append(model.pfb.selection.num_kept)
            moved = [
                not torch.equal(p, old)
                for p, old in zip(model.pfb.exit.parameters(), before, strict=True)
            ]
            assert all(moved)
        assert kept == [8, 8, 4, 4]

    def test_steps_that_are_not_blocked_do_not_warm_it_and_give_it_no_gradient(self, strategy):
        model = build(warmup=2, strategy=strategy)
        model.pfb.pruning = False
        for _ in range(3):
            losses = model.loss(tiny.images(), tiny.samples())
        assert losses['exit.loss_ce'] == 0
        tiny.total(losses).backward()
        # Zeros and not None: DDP waits for the gradient of every weight.
        assert all(p.grad is not None and not p.grad.any() for p in model.pfb.exit.parameters())
        assert not model.pfb.pruner.ready

    def test_where_nothing_is_pruned_it_stays_as_it_is(self, strategy):
        model = build(strategy=strategy, prune_ratio=0)
        assert model.loss(tiny.images(), tiny.samples())['exit.loss_ce'] == 0
        assert model.pfb.selection is None

    def test_its_loss_falls(self, strategy):
        model = build(strategy=strategy)
        optimizer = torch.optim.SGD(model.pfb.exit.parameters(), lr=0.5)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            losses.append(model.loss(tiny.images(), tiny.samples())['exit.loss_ce'])
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < 0.9 * losses[0]

    def test_an_image_that_is_not_finite_spoils_neither_its_weights_nor_the_choice(self, strategy):
        model = tiny.build(dict(criterion=own(warmup=0), strategy=strategy), norm_eval=True)
        images = tiny.images()
        images[[2, 5], 0, 3, 3] = torch.tensor([float('nan'), float('inf')])
        losses = model.loss(images, tiny.samples())
        kept = model.pfb.selection.indices.tolist()
        assert len(kept) == 4 and not {2, 5} & set(kept)
        losses['exit.loss_ce'].backward()
        assert losses['exit.loss_ce'] > 0
        assert all(p.grad.isfinite().all() for p in model.pfb.exit.parameters())

    def test_in_bfloat16_its_weights_get_gradients_in_their_own_type(self, strategy):
        model = build(strategy=strategy)
        with torch.autocast('cpu', torch.bfloat16):
            losses = model.loss(tiny.images(), tiny.samples())
        tiny.total(losses).backward()
        for parameter in model.parameters():
            assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


class Fixed(nn.Module):
    """What a criterion is to a pruner: those that are named stay. Runs the shallow part."""

    score_name, learns, exit_options, whole_network, ready = None, False, None, False, True

    def __init__(self, indices):
        super().__init__()
        self.indices = indices

    def observe(self, candidates):
        candidates.features()
        return torch.zeros(candidates.num).index_fill(0, self.indices, 1.0)

    def score(self, observation, generator):
        return observation

    importance = score


def test_of_a_binary_head_it_tells_two_classes_apart():
    head = dict(
        num_classes=2,
        out_channels=1,
        threshold=0.3,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    model = build(head=head)
    samples = tiny.samples()
    for sample in samples:
        sample.gt_sem_seg.data.clamp_(max=1)
    tiny.total(model.loss(tiny.images(), samples)).backward()
    assert model.pfb.exit.layers[-1].out_channels == 2
    assert model.pfb.selection.score.isfinite().all()


@pytest.mark.parametrize('pool', [2, 3])
def test_reads_pooled_features_where_it_is_told_to(pool):
    model = build(pool=pool)
    shapes = []
    model.pfb.exit.layers.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    model.loss(tiny.images(), tiny.samples())
    assert shapes == [(8, 32, -(-8 // pool), -(-8 // pool))]


def test_another_number_of_channels_than_the_user_said_is_refused_with_both():
    with pytest.raises(ValueError, match='with 32 channels, the exit reads one with 12'):
        tiny.build(dict(criterion=own(in_channels=12)))
    assert tiny.build(dict(criterion=own(in_channels=32))).pfb.exit.layers[0].in_channels == 32


def run(work_dir, max_iters=12, **options):
    return demo_config(
        work_dir,
        max_iters,
        **{
            'model.pfb.criterion': own(warmup=5),
            'custom_hooks': [dict(type='PFBHook', begin=0, end=1.0)],
            'default_hooks.checkpoint.interval': 4,
            **options,
        },
    )


def kept(folder):
    entries = []
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        entries += [json.loads(line) for line in file.read_text().splitlines()]
    return [round(entry['pfb/kept']) for entry in entries if 'pfb/kept' in entry]


@pytest.mark.parametrize('at', [4, 8], ids=['in the warm-up', 'after it'])
def test_a_run_that_is_resumed_goes_on_bit_for_bit(tmp_path, at):
    whole = train(run(tmp_path / 'whole'))
    config = run(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'whole' / f'iter_{at}.pth'), True
    resumed = train(config)
    expected = whole.model.state_dict()
    assert any(name.startswith('pfb.exit.layers.') for name in expected)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for one, other in zip(
        resumed.optim_wrapper.optimizer.state.values(),
        whole.optim_wrapper.optimizer.state.values(),
        strict=True,
    ):
        for key, value in one.items():
            assert np.array_equal(value, other[key])
    assert kept(tmp_path / 'whole') == [4] * 5 + [2] * 7
    assert kept(tmp_path / 'resumed') == ([4] * 5 + [2] * 7)[at:]


def test_is_absent_from_inference_and_its_checkpoint_loads_into_the_plain_class():
    model = build()
    tiny.total(model.loss(tiny.images(), tiny.samples())).backward()
    plain = MODELS.build(tiny.model_cfg('EncoderDecoder'))
    loaded = plain.load_state_dict(model.state_dict(), strict=False)
    assert not loaded.missing_keys
    assert loaded.unexpected_keys and all(k.startswith('pfb.') for k in loaded.unexpected_keys)
    calls = []
    model.pfb.exit.layers.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        images = tiny.images()
        assert torch.equal(model.eval()(images, mode='tensor'), plain.eval()(images, mode='tensor'))
    assert not calls


def test_a_model_that_predicts_no_classes_is_refused_in_a_sentence():
    init_default_scope('mmseg')

    class PFBDepth(PFBMixin, DepthEstimator):
        pass

    with pytest.raises(ValueError, match="VPDDepthHead predicts none; use .*'rare'"):
        PFBDepth(
            pfb=dict(prune_ratio=0.5, criterion='hard'),
            backbone=dict(type='ResNet', depth=18, base_channels=16),
            decode_head=dict(
                type='VPDDepthHead',
                in_channels=[16, 32, 64, 128],
                embed_dim=16,
                feature_dim=128,
                num_deconv_filters=(16, 16, 16),
            ),
        )
