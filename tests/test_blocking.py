"""Where a forward pass is cut, and what that leaves behind."""

import pytest
import torch
from torch import nn

from pfb_mmseg.blocking import BlockingPoint, scoring_mode


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
    point = BlockingPoint(encoder, 'stage2')
    encoder.stage3.register_forward_hook(lambda *args: pytest.fail('stage 3 ran'))
    expected = encoder.stage2(encoder.stage1(images)).mean(dim=(2, 3))
    torch.testing.assert_close(point.score(images), expected.detach())
    assert point.num_channels == 6


@pytest.mark.parametrize(
    ('name', 'complaint'),
    [
        ('stage7', "no module 'stage7' .*did you mean 'stage"),
        ('unused', "'unused' is never reached"),
    ],
)
def test_a_wrong_module_is_refused_before_any_training(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        BlockingPoint(Chain(), name)


@pytest.mark.parametrize('batch_statistics', [True, False])
def test_scoring_leaves_every_buffer_flag_and_random_state_as_it_was(images, batch_statistics):
    encoder = Chain(dropout=0.5).train()
    encoder.stage2.eval()  # a frozen stage
    point = BlockingPoint(encoder, 'stage2')
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
    point = BlockingPoint(encoder, 'stage2')
    with pytest.raises(RuntimeError), scoring_mode(encoder):
        point.score(torch.zeros(2, 5, 16, 16))
    assert all(module.training for module in encoder.modules())
    assert encoder.stage1[1].track_running_stats
    assert not encoder.stage2._forward_hooks


def test_scoring_statistics_are_the_batch_or_the_running_ones(images):
    encoder = Chain().train()
    point = BlockingPoint(encoder, 'stage1')
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
    point = BlockingPoint(encoder, 'stage2')
    whole = encoder(images)
    kept = torch.tensor([1, 4])
    seen = []
    encoder.stage3.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with point.cut(lambda vectors: kept):
        outputs = encoder(images)
    assert seen == [2]
    for output, expected in zip(outputs, whole, strict=True):
        torch.testing.assert_close(output, expected[kept])
    assert len(encoder(images)[2]) == 6, 'the cut outlived its context'


def test_a_network_that_needs_all_images_behind_the_point_is_refused_by_check_cut():
    with pytest.raises(ValueError, match="Use strategy='two_pass'"):
        BlockingPoint(TwoBranches(), 'stage2').check_cut()
    BlockingPoint(Chain(), 'stage2').check_cut()


def test_an_encoder_of_one_size_refuses_smaller_images_for_scoring():
    encoder = Chain()
    encoder.stage2.register_forward_pre_hook(lambda module, args: args[0].view(-1, 4, 64, 128))
    point = BlockingPoint(encoder, 'stage2')
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
    point = BlockingPoint(encoder, 'stage')
    assert point.num_channels == 4 * copies
    expected = encoder.stem(images).mean((2, 3)).detach()
    torch.testing.assert_close(point.score(images)[:, :4], expected, atol=1e-5, rtol=1e-4)
