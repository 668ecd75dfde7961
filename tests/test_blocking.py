"""Where a forward pass is cut, and what that leaves behind."""

import copy

import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from tiny import host
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)

from pfb_mmseg.blocking import (
    BlockingPoint,
    RunsTwice,
    SinglePass,
    is_sharded,
    least_trainable,
    scoring_mode,
)


class Chain(nn.Module):
    """Three stages, dropout in the first, a module that is never called."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(dropout)
        )
        self.stage2 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.stage3 = nn.Conv2d(6, 8, 3, 1, 1)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        first = self.stage1(x)
        second = self.stage2(first)
        return first, second, self.stage3(second)


class TwoBranches(Chain):
    def forward(self, x):
        first = self.stage1(x)
        second = self.stage2(first)
        return (self.stage3(second) + first.mean(dim=(1, 2, 3), keepdim=True),)


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 32, generator=torch.Generator().manual_seed(0))


def test_score_is_the_spatial_mean_of_the_module_named_and_nothing_behind_it_runs(images):
    encoder = Chain().eval()
    point = BlockingPoint(host(encoder), 'stage2')
    encoder.stage3.register_forward_hook(lambda *args: pytest.fail('stage 3 ran'))
    expected = encoder.stage2(encoder.stage1(images)).mean(dim=(2, 3))
    assert point.num_channels is None, 'nothing was run so far'
    torch.testing.assert_close(point.score(images), expected.detach())
    assert point.num_channels == 6


def test_a_model_without_a_backbone_is_its_own_encoder(images):
    model = Chain()
    point = BlockingPoint(model, 'stage2')
    expected = BlockingPoint(host(model), 'stage2').score(images)
    torch.testing.assert_close(point.score(images), expected)
    with SinglePass(point).cut(lambda features: torch.tensor([1, 4])):
        assert [len(output) for output in model(images)] == [2, 2, 2]


def test_candidates_run_the_model_only_if_they_are_asked(images):
    model = Chain(dropout=0.5)
    before = copy.deepcopy(model.state_dict())
    calls = []
    model.stage2.register_forward_hook(lambda *args: calls.append(args))
    model.stage3.register_forward_hook(lambda *args: pytest.fail('stage 3 ran'))
    point = BlockingPoint(model, 'stage2')
    point.prepare()
    calls.clear()
    candidates = point.candidates(images)
    assert candidates.num == 6 and not calls
    features = candidates.features()
    assert len(calls) == 1 and features.shape == (6, 6) and not features.requires_grad
    torch.testing.assert_close(features, point.candidates(images).features())  # no dropout
    assert model.stage1[2].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_misspelt_module_is_refused_where_the_point_is_made():
    with pytest.raises(ValueError, match="no module 'stage7' .*did you mean 'stage"):
        BlockingPoint(host(Chain()), 'stage7')


def test_a_module_that_the_forward_pass_never_calls_is_refused_by_prepare():
    with pytest.raises(ValueError, match="'unused' is never reached"):
        BlockingPoint(host(Chain()), 'unused').prepare()


class Wrapper(nn.Module):
    """As FSDP does it: the wrapped module goes by a name of the wrapper's own."""

    def __init__(self, wrapped):
        super().__init__()
        self._wrapped = wrapped
        self.unsharded = False

    def forward(self, *args):
        self.unsharded = True
        return self._wrapped(*args)


class TestLookUp:
    """The point finds its way when the model is changed after it was built."""

    @pytest.fixture
    def model(self):
        return host(Chain().train())

    def check(self, model, point, images, expected):
        with scoring_mode(model.backbone):
            torch.testing.assert_close(point.score(images), expected)

    @pytest.fixture
    def expected(self, model, images):
        with scoring_mode(model.backbone):
            return model.backbone.stage2(model.backbone.stage1(images)).mean((2, 3))

    def test_the_encoder_is_called_through_what_was_wrapped_around_it(
        self, model, images, expected
    ):
        point = BlockingPoint(model, 'stage2')
        model.backbone = Wrapper(model.backbone)
        self.check(model, point, images, expected)
        assert model.backbone.unsharded

    @pytest.mark.parametrize('wrap', [Wrapper, checkpoint_wrapper])
    def test_a_module_inside_a_wrapped_stage_is_found(self, model, images, wrap):
        point = BlockingPoint(model, 'stage2.0')
        convolution = model.backbone.stage2[0]
        model.backbone.stage2 = wrap(model.backbone.stage2)
        model.backbone = Wrapper(model.backbone)
        assert point.module is convolution
        with scoring_mode(model.backbone):
            assert point.score(images).shape == (6, 6)

    @pytest.mark.parametrize('wrap', [Wrapper, checkpoint_wrapper])
    def test_a_wrapped_stage_is_found(self, model, images, expected, wrap):
        point = BlockingPoint(model, 'stage2')
        model.backbone.stage2 = wrap(model.backbone.stage2)
        self.check(model, point, images, expected)

    def test_a_copy_has_the_encoder_of_the_copy(self, model):
        point = BlockingPoint(model, 'stage2')
        model.point = point
        twin = copy.deepcopy(model)
        assert twin.point.encoder is twin.backbone
        assert twin.point.module is twin.backbone.stage2
        assert twin.backbone is not model.backbone

    def test_a_converted_norm_layer_is_found(self, model):
        point = BlockingPoint(model, 'stage2.1')
        model.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(model.backbone)
        assert isinstance(point.module, nn.SyncBatchNorm)

    def test_a_module_that_was_taken_away_is_missed(self, model, images):
        point = BlockingPoint(model, 'stage2')
        model.backbone.stage2 = None
        with pytest.raises(ValueError, match="'stage2' to block after is no longer in"):
            point.score(images)


def test_a_model_that_is_put_together_by_its_wrapper_is_not_run_before_training():
    model = host(Chain())
    assert not is_sharded(model, model)
    assert is_sharded(Wrapper(model), model)
    model.backbone.stage3.weight.device_mesh = 'as a DTensor of fully_shard has one'
    assert is_sharded(model, model)


class TestPrepare:
    def test_leaves_the_encoder_and_the_random_state_alone_and_runs_once(self):
        encoder = Chain(dropout=0.5).train()
        before, state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
        point = BlockingPoint(host(encoder), 'stage2')
        calls = []
        encoder.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
        point.prepare()
        point.prepare()
        assert calls == [(1, 3, 128, 256)]
        assert point.num_channels == 6 and point.input_shape == (3, 128, 256)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)
        assert all(module.training for module in encoder.modules())

    def test_takes_type_and_device_of_the_images_that_are_trained_on(self):
        encoder, seen = Chain(), []
        encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
        encoder.double()
        point = BlockingPoint(host(encoder), 'stage2')
        point.prepare(like=torch.zeros(2, 3, 8, 8, dtype=torch.float64))
        assert seen == [torch.float64]

    def test_colour_images_are_tried_before_the_channels_of_the_first_convolution(self):
        encoder = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 6, 1), nn.Conv2d(6, 4, 1))
        point = BlockingPoint(host(encoder), '1')
        point.prepare()
        assert point.input_shape == (3, 128, 256) and point.num_channels == 6

    def test_an_encoder_of_other_images_gets_the_channels_of_its_first_convolution(self):
        encoder = nn.Sequential(nn.Conv2d(1, 6, 1), nn.Conv2d(6, 4, 1))
        point = BlockingPoint(host(encoder), '0')
        point.prepare()
        assert point.input_shape == (1, 128, 256)


def unprepared(**pfb):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(tiny.model_cfg(pfb=pfb))


class TestModel:
    def test_building_a_model_for_inference_runs_nothing(self):
        """Its backbone may have operations that the machine it is built on has not."""
        model = unprepared().eval()
        rows = []
        model.backbone.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        model(tiny.images(2), tiny.samples(2), mode='loss')
        assert rows == [2]
        assert not model.pfb.prepared

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    def test_the_first_training_step_looks_at_the_point(self, strategy):
        model = unprepared(strategy=strategy).train()
        model.loss(tiny.images(), tiny.samples())
        assert model.pfb.prepared and model.pfb.point.num_channels == 32

    def test_a_misfit_is_refused_before_the_first_loss(self):
        model = unprepared(criterion=dict(type='rare', estimator=dict(dim=33))).train()
        with pytest.raises(ValueError, match=r'dim=33 is more than the 32 channels.*dim=32'):
            model.loss(tiny.images(), tiny.samples())


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_a_users_forward_hook_can_tell_the_passes_apart(strategy):
    model = tiny.build(dict(strategy=strategy))
    passes = []
    model.backbone.stem.register_forward_hook(
        lambda module, args, output: passes.append((model.pfb.point.scoring, len(output)))
    )
    model.loss(tiny.images(), tiny.samples())
    assert passes == ([(True, 8), (False, 4)] if strategy == 'two_pass' else [(False, 8)])


class ForeignNorm(nn.Module):
    """A BatchNorm of its own, as mmcv's MMSyncBN is: no flag stops its running mean."""

    group_size = 1

    def __init__(self, num_features):
        super().__init__()
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('num_batches_tracked', torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        mean = self.running_mean
        if self.training:
            mean = x.mean((0, 2, 3))
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.num_batches_tracked += 1
        return x - mean[:, None, None]


@pytest.mark.parametrize(
    'norm',
    [ForeignNorm(4), nn.InstanceNorm2d(4, track_running_stats=True)],
    ids=['own', 'instance'],
)
def test_norms_of_any_class_score_with_the_statistics_of_the_batch_and_keep_theirs(images, norm):
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU()).train()
    point = BlockingPoint(host(encoder), '2')
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with scoring_mode(encoder):
        of_batch = point.score(images)
    with scoring_mode(encoder, batch_statistics=False):
        running = point.score(images)
    torch.testing.assert_close(dict(encoder.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(of_batch, encoder(images).mean((2, 3)).detach())
    assert not torch.allclose(of_batch, running)
    norm.eval()
    with scoring_mode(encoder):
        frozen = point.score(images)
    torch.testing.assert_close(frozen, encoder(images).mean((2, 3)).detach())


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.branch(x)


def conv_and_norm(norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(4, 4, 1), norm(4))


class InAClass(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))


POOL = nn.AdaptiveAvgPool2d(1)


@pytest.mark.parametrize(
    ('least', 'parts'),
    [
        (1, [SqueezeExcite(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]),
        (1, [SqueezeExcite(), conv_and_norm()]),
        (2, [POOL, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]),
        (2, [POOL, conv_and_norm()]),
        (2, [nn.Sequential(POOL, nn.ReLU()), conv_and_norm()]),
        (2, [nn.AdaptiveAvgPool2d((1, 1)), InAClass()]),
        (2, [POOL, conv_and_norm(ForeignNorm)]),
        (1, [POOL, conv_and_norm(lambda num: nn.GroupNorm(2, num))]),
        (1, [nn.AdaptiveAvgPool2d(2), conv_and_norm()]),
        (1, [conv_and_norm(), POOL]),
        (1, [POOL, nn.Upsample((8, 8)), conv_and_norm()]),
    ],
)
def test_two_images_are_needed_only_where_single_pixels_are_normalised(least, parts):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *parts).train()
    assert least_trainable(host(network)) == least
    if ForeignNorm not in map(type, network.modules()):  # which does not mind

        def train_on_one():
            return network(torch.rand(1, 3, 8, 8))

        if least == 1:
            train_on_one()
        else:
            with pytest.raises(ValueError, match='more than 1 value per channel'):
                train_on_one()


@pytest.mark.parametrize('batch_statistics', [True, False])
def test_scoring_leaves_every_buffer_flag_and_random_state_as_it_was(images, batch_statistics):
    encoder = Chain(dropout=0.5).train()
    encoder.stage2.eval()  # a frozen stage
    point = BlockingPoint(host(encoder), 'stage2')
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    flags = [module.training for module in encoder.modules()]
    random_state = torch.get_rng_state()
    with scoring_mode(encoder, batch_statistics):
        vectors = point.score(images)
    assert not vectors.requires_grad
    assert [module.training for module in encoder.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(m.track_running_stats for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))


def test_scoring_restores_the_encoder_after_an_error():
    encoder = Chain().train()
    point = BlockingPoint(host(encoder), 'stage2')
    with pytest.raises(RuntimeError), scoring_mode(encoder):
        point.score(torch.zeros(2, 5, 16, 16))
    assert all(module.training for module in encoder.modules())
    assert encoder.stage1[1].track_running_stats
    assert not encoder.stage2._forward_hooks


def test_scoring_statistics_are_the_batch_or_the_running_ones(images):
    encoder = Chain().train()
    point = BlockingPoint(host(encoder), 'stage1')
    convolved = encoder.stage1[0](images)
    with scoring_mode(encoder, batch_statistics=True):
        of_batch = point.score(images)
    with scoring_mode(encoder, batch_statistics=False):
        running = point.score(images)
    mean, var = convolved.mean((0, 2, 3), True), convolved.var((0, 2, 3), False, True)
    expected = ((convolved - mean) / (var + 1e-5).sqrt()).mean((2, 3))
    torch.testing.assert_close(of_batch, expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(running, convolved.mean((2, 3)).detach() / (1 + 1e-5) ** 0.5)


def test_a_cut_lets_only_the_chosen_images_on_and_narrows_earlier_outputs_too(images):
    encoder = Chain().eval()
    point = BlockingPoint(host(encoder), 'stage2')
    whole = encoder(images)
    kept = torch.tensor([1, 4])
    seen = []
    encoder.stage3.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with SinglePass(point).cut(lambda vectors: kept):
        outputs = encoder(images)
    assert seen == [2]
    for output, expected in zip(outputs, whole, strict=True):
        torch.testing.assert_close(output, expected[kept])
    assert len(encoder(images)[2]) == 6, 'the cut outlived its context'


def reentrant(module):
    return checkpoint_wrapper(module, checkpoint_impl=CheckpointImpl.REENTRANT)


@pytest.mark.parametrize('wrap', [checkpoint_wrapper, reentrant])
@pytest.mark.parametrize('part', ['backbone', 'backbone.stage2', 'backbone.stage3'])
def test_a_cut_holds_in_what_is_recomputed_in_the_backward_pass(images, wrap, part):
    def gradients(wrap_part):
        torch.manual_seed(0)
        model = host(Chain().train())
        point = BlockingPoint(model, 'stage2.1')
        parent, _, name = part.rpartition('.')
        if wrap_part:
            around = model.get_submodule(parent)
            setattr(around, name, wrap(getattr(around, name)))
        single_pass = SinglePass(point)
        for _ in range(2):
            model.zero_grad()
            with single_pass.cut(lambda vectors: torch.tensor([1, 4])):
                outputs = model.backbone(images.clone().requires_grad_())
            assert [len(output) for output in outputs] == [2, 2, 2]
            outputs[2].square().sum().backward()
        with torch.no_grad():
            assert len(model.backbone(images)[2]) == 6, 'the cut outlived its step'
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {name.replace('_checkpoint_wrapped_module.', ''): g for name, g in found.items()}

    torch.testing.assert_close(gradients(True), gradients(False))


def test_a_cut_leaves_no_hook_behind_where_nothing_is_recomputed(images):
    model = host(Chain())
    point = BlockingPoint(model, 'stage2')
    with SinglePass(point).cut(lambda vectors: torch.tensor([1, 4])):
        model.backbone(images)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_needs_all_images_behind_the_point_is_refused():
    with pytest.raises(ValueError, match="Use strategy='two_pass'"):
        SinglePass(BlockingPoint(host(TwoBranches()), 'stage2')).check()
    SinglePass(BlockingPoint(host(Chain()), 'stage2')).check()


class SharedBranches(nn.Module):
    """In training the last stage sees each image several times, as TridentNet's does."""

    def __init__(self):
        super().__init__()
        self.stage1, self.stage2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.stage1(x)
        return torch.cat([self.stage2(x) for _ in range(3 if self.training else 1)])


@pytest.mark.parametrize(
    ('name', 'says'), [('stage1', 'several rows'), ('stage2', 'more than once')]
)
def test_branches_that_share_weights_are_refused_in_a_single_pass(images, name, says):
    encoder = SharedBranches().train()
    single_pass = SinglePass(BlockingPoint(host(encoder), name))
    single_pass.check()  # out of training there is one branch
    with pytest.raises(RunsTwice, match=f"{says}.*use strategy='two_pass'"):
        with single_pass.cut(lambda output: torch.tensor([0, 1, 3, 4])):
            encoder(images)
    assert len(encoder(images)) == 18


def test_an_encoder_of_one_size_refuses_smaller_images_for_scoring():
    encoder = Chain()
    encoder.stage2.register_forward_pre_hook(lambda module, args: args[0].view(-1, 4, 64, 128))
    point = BlockingPoint(host(encoder), 'stage2')
    with pytest.raises(ValueError, match='score_scale=0.5: Chain cannot take images of 64x128'):
        point.check_scale(0.5)
    point.check_scale(1.0)


class Emits(nn.Module):
    """An encoder whose stage returns whatever ``make`` builds from (N, 4, H, W)."""

    def __init__(self, make):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.make = make
        self.stage = _Stage(make)

    def forward(self, x):
        return self.stage(self.stem(x))


class _Stage(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ('make', 'copies'),
    [
        (lambda x: x, 1),
        (lambda x: x.permute(0, 2, 3, 1), 1),
        (lambda x: x.flatten(2).transpose(1, 2), 1),
        (lambda x: (x.flatten(2).transpose(1, 2), (16, 32)), 1),
        (lambda x: [x, x[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)], 2),
        (lambda x: {'out': x, 'shape': torch.tensor([16, 32])}, 1),
    ],
    ids=['NCHW', 'NHWC', 'NLC', 'tuple', 'list', 'dict'],
)
def test_channels_are_found_in_every_layout_of_a_stage_output(images, make, copies):
    encoder = Emits(make)
    point = BlockingPoint(host(encoder), 'stage')
    point.prepare()
    assert point.num_channels == 4 * copies
    expected = encoder.stem(images).mean((2, 3)).detach()
    torch.testing.assert_close(point.score(images)[:, :4], expected, atol=1e-5, rtol=1e-4)


class SharedActivation(nn.Module):
    """One module that runs before the blocking point and behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.second(self.act(self.first(x))))


def test_a_pass_ends_behind_the_point_at_a_module_that_has_run_before_it():
    encoder = SharedActivation()
    point = BlockingPoint(tiny.host(encoder), 'second')
    images, seen = tiny.images(2, 16), []
    point.prepare()
    encoder.act.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        vectors = point.vectors(point.reach(lambda: encoder(images), encoder.act))
        expected = encoder.second(encoder.first(images).relu()).mean((2, 3))
    assert len(seen) == 2
    torch.testing.assert_close(vectors, expected)
