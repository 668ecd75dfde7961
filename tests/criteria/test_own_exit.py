"""An exit of PFB's own: taught by all images that are looked at, and in nobody's way."""

import copy
import json

import pytest
import tiny
import torch
from demo_runs import demo_config, train
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn
from torch.nn import functional as F

STRATEGIES = ['two_pass', 'single_pass']
OWN = dict(criterion='hard', exit='own', exit_loss_weight=0)
WARM_UP = 10


def build(head=None, ready=True, **pfb):
    """Before its first step, or after those in which the exit only learns."""
    model = tiny.build(OWN | pfb, head=head)
    nn.init.normal_(model.pfb.exit.layers[-1].weight, std=0.5)
    if ready:
        for seed in range(100, 100 + WARM_UP):
            model.loss(tiny.images(4, 32, seed), tiny.samples(4, 32, seed))
    return model


def explicit_losses(layers, maps, samples):
    """(N,) float64, mean over the pixels of each image, with a graph to the weights."""
    conv, norm, _, last = layers
    hidden = F.conv2d(maps, conv.weight, padding=conv.padding)
    mean, var = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), correction=0)
    shape = (1, -1, 1, 1)
    hidden = (hidden - mean.view(shape)) / (var.view(shape) + norm.eps).sqrt()
    hidden = hidden * norm.weight.view(shape) + norm.bias.view(shape)
    logits = F.conv2d(hidden.relu(), last.weight, last.bias)
    losses = []
    for one, sample in zip(logits, samples, strict=True):
        labels = sample.gt_sem_seg.data[0]
        step = [labels.shape[i] // one.shape[1 + i] for i in range(2)]
        labels = labels[step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
        chosen = one.log_softmax(0).gather(0, (labels % 255)[None])[0]
        losses.append(-(chosen * (labels != 255)).mean())
    return torch.stack(losses)


def unpacked(state):
    """How many batches an exit has learnt from; its weights, then both moments."""
    return int(state[0]), state[1:].view(torch.float32)


@pytest.mark.parametrize('strategy', STRATEGIES)
class TestStep:
    def test_the_highest_of_its_losses_stay_and_it_learns_from_all(self, strategy):
        """By Adam with a rate of 0.001, from the mean over all images, whatever stays."""
        model = build(strategy=strategy)
        before = copy.deepcopy(model.pfb.exit.layers).double()
        adam = torch.optim.Adam(before.parameters(), 1e-3)
        learnt, numbers = unpacked(model.pfb.exit.pack())
        sizes = [weight.numel() for weight in before.parameters()]
        moments = [part.double().split(sizes) for part in numbers.view(3, -1)[1:]]
        for weight, first, second in zip(before.parameters(), *moments, strict=True):
            adam.state[weight] = dict(
                step=torch.tensor(float(learnt)),
                exp_avg=first.view_as(weight).clone(),
                exp_avg_sq=second.view_as(weight).clone(),
            )
        seen, samples = [], tiny.samples()
        model.backbone.layer3.register_forward_hook(
            lambda module, args, output: seen.append(output.detach().double())
        )
        samples[3].gt_sem_seg.data[:, :32] = 255
        model.loss(tiny.images(), samples)
        expected = explicit_losses(before, seen[0], samples)
        selection = model.pfb.selection
        torch.testing.assert_close(
            selection.score.double(), expected.detach(), rtol=1e-4, atol=1e-5
        )
        assert selection.indices.tolist() == sorted(expected.argsort()[4:].tolist())
        expected.mean().backward()
        adam.step()
        for found, wanted in zip(
            model.pfb.exit.layers.parameters(), before.parameters(), strict=True
        ):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5)

    def test_the_rest_of_the_model_is_trained_as_without_it(self, strategy):
        """Bit by bit, dropout included: it draws no random number."""
        model = build(strategy=strategy)
        images, samples = tiny.images(), tiny.samples()
        state = model.state_dict()
        weights = {k: v.clone() for k, v in state.items() if not k.startswith('pfb.')}
        torch.manual_seed(7)
        losses = model.loss(images, samples)
        tiny.total(losses).backward()
        kept = model.pfb.selection.indices

        def the_same(candidates):
            candidates.features()
            return torch.zeros(candidates.num).index_fill(0, kept, 1.0)

        twin = tiny.build(dict(criterion=the_same, strategy=strategy))
        twin.load_state_dict(weights, strict=False)
        torch.manual_seed(7)
        expected = twin.loss(images, samples)
        tiny.total(expected).backward()
        torch.testing.assert_close(losses, expected, rtol=0, atol=0)
        torch.testing.assert_close(tiny.gradients(model), tiny.gradients(twin), rtol=0, atol=0)
        buffers, others = (dict(one.backbone.named_buffers()) for one in (model, twin))
        torch.testing.assert_close(buffers, others, rtol=0, atol=0)

    def test_it_learns_from_all_images_before_it_decides_and_teaches(self, strategy):
        model = build(ready=False, strategy=strategy, exit_loss_weight=1)
        kept, taught = [], []
        for seed in range(WARM_UP + 2):
            before = [p.clone() for p in model.pfb.exit.layers.parameters()]
            losses = model.loss(tiny.images(size=32, seed=seed), tiny.samples(size=32, seed=seed))
            kept.append(model.pfb.selection.num_kept)
            taught.append('exit.loss_ce' in losses)
            after = model.pfb.exit.layers.parameters()
            assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert kept == [8] * WARM_UP + [4] * 2
        assert taught == [False] * WARM_UP + [True] * 2

    def test_steps_that_are_not_blocked_leave_it_alone(self, strategy):
        for pfb, pruning in (({}, False), (dict(prune_ratio=0), True)):
            model = build(ready=False, strategy=strategy, **pfb)
            model.pfb.pruning = pruning
            before = model.pfb.exit.pack().clone()
            model.loss(tiny.images(), tiny.samples())
            assert model.pfb.selection is None
            assert torch.equal(model.pfb.exit.pack(), before)

    def test_in_bfloat16_it_computes_in_float32(self, strategy):
        model = build(strategy=strategy, exit_loss_weight=1)
        with torch.autocast('cpu', torch.bfloat16):
            losses = model.loss(tiny.images(), tiny.samples())
        tiny.total(losses).backward()
        weights = [*model.pfb.exit.layers.parameters(), model.pfb.selection.score]
        assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights)
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('num_classes', [1, 2])
@pytest.mark.parametrize('strategy', STRATEGIES)
def test_of_a_binary_head_it_has_one_channel_that_tells_two_classes_apart(strategy, num_classes):
    head = dict(
        num_classes=num_classes,
        out_channels=1,
        threshold=0.3,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
    )
    samples = tiny.samples()
    for i, sample in enumerate(samples):
        sample.gt_sem_seg.data = (sample.gt_sem_seg.data > i % 4).long()
        sample.gt_sem_seg.data[:, :8] = 255
    model = tiny.build(OWN | dict(strategy=strategy, exit_loss_weight=1), head=head)
    seen = []
    model.pfb.exit.layers.register_forward_hook(lambda _, args, out: seen.append(out.detach()))
    for _ in range(WARM_UP + 1):
        tiny.total(model.loss(tiny.images(), samples)).backward()
    chance = seen[-1].double().sigmoid()
    assert chance.shape == (8, 1, 8, 8)
    labels = torch.stack([sample.gt_sem_seg.data[:, 4::8, 4::8] for sample in samples])
    pixels = -torch.where(labels == 1, chance.log(), (1 - chance).log())
    expected = torch.where(labels == 255, 0, pixels).mean((1, 2, 3))
    torch.testing.assert_close(model.pfb.selection.score.double(), expected, rtol=1e-4, atol=1e-6)


def test_its_first_weights_depend_on_the_seed_of_pfb_alone():
    first = [tiny.build(OWN | dict(seed=seed)).pfb.exit.layers[0].weight for seed in (0, 0, 1)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_of_several_feature_maps_it_reads_all():
    init_default_scope('mmseg')
    model = MODELS.build(tiny.model_cfg(pfb=OWN | dict(strategy='two_pass'))).train()

    def two_maps(module, args, output):
        return (output, output[..., ::2, ::2]) if model.pfb.point.scoring else output

    model.backbone.layer3.register_forward_hook(two_maps)
    seen = []
    model.pfb.prepare()
    model.pfb.exit.layers.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    model.loss(tiny.images(), tiny.samples())
    assert seen == [(8, 64, 8, 8)]


def test_is_no_part_of_the_model_and_absent_from_inference():
    model, plain = build(), MODELS.build(tiny.model_cfg('EncoderDecoder'))
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]
    loaded = plain.load_state_dict(model.state_dict(), strict=False)
    assert not loaded.missing_keys
    assert loaded.unexpected_keys and all(k.startswith('pfb.') for k in loaded.unexpected_keys)
    calls = []
    model.pfb.exit.layers.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        images = tiny.images()
        assert torch.equal(model.eval()(images, mode='tensor'), plain.eval()(images, mode='tensor'))
    assert not calls


def run(work_dir, max_iters=16):
    return demo_config(
        work_dir,
        max_iters,
        **{
            'model.pfb.criterion': dict(_delete_=True, type='hard'),
            'model.pfb.exit': 'own',
            'custom_hooks': [dict(type='PFBHook', begin=0, end=1.0)],
            'default_hooks.checkpoint.interval': 4,
        },
    )


def kept(folder):
    entries = []
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        entries += [json.loads(line) for line in file.read_text().splitlines()]
    return [round(entry['pfb/kept']) for entry in entries if 'pfb/kept' in entry]


@pytest.mark.parametrize('at', [4, 12], ids=['while it only learns', 'after that'])
def test_a_run_that_is_resumed_goes_on_bit_for_bit(tmp_path, at):
    whole = train(run(tmp_path / 'whole'))
    config = run(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'whole' / f'iter_{at}.pth'), True
    resumed = train(config)
    assert torch.equal(resumed.model.pfb.exit.pack(), whole.model.pfb.exit.pack())
    expected = dict(whole.model.named_parameters()) | dict(whole.model.named_buffers())
    found = dict(resumed.model.named_parameters()) | dict(resumed.model.named_buffers())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert kept(tmp_path / 'whole') == [4] * WARM_UP + [2] * 6
    assert kept(tmp_path / 'resumed') == ([4] * WARM_UP + [2] * 6)[at:]
