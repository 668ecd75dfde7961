"""The estimate goes wherever its model goes, and nobody averages or casts it."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pfb_mmseg.core import AdaptiveDensityEstimator
from pfb_mmseg.core.clusters import Clusters


def rows(seed, num=8, dim=4):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def trained(num_updates=10, **options):
    estimator = AdaptiveDensityEstimator(**{'num_centroids': 6, 'dim': 4, **options})
    for seed in range(num_updates):
        estimator.update(rows(seed))
    return estimator


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(a, b):
    assert torch.equal(a.centroids, b.centroids)
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.idle, b.idle)
    assert a.ready is b.ready
    for seed in range(100, 106):  # and it goes on alike
        assert torch.equal(a.log_density(rows(seed)), b.log_density(rows(seed)))
        for estimator in (a, b):
            estimator.update(rows(seed))
        assert torch.equal(a.centroids, b.centroids)


@pytest.mark.parametrize(
    'cast',
    [
        nn.Module.half,
        nn.Module.bfloat16,
        nn.Module.double,
        lambda model: model.to(torch.bfloat16),
        lambda model: model.type(torch.float16),
    ],
    ids=['half', 'bfloat16', 'double', 'to', 'type'],
)
def test_a_cast_of_the_model_leaves_it_alone(cast):
    model = nn.ModuleDict({'conv': nn.Conv2d(1, 1, 1), 'estimator': trained()})
    cast(model)
    assert model['conv'].weight.dtype != torch.float32
    assert model['estimator'].centroids.dtype == torch.float32
    assert model['estimator'].counts.dtype == torch.int64
    assert_same(model['estimator'], trained())


def test_a_copy_is_an_estimate_of_its_own():
    original = trained()
    original.log_density(rows(0))
    twin = copy.deepcopy(original)
    original.update(rows(50))
    assert not torch.equal(twin.centroids, original.centroids)
    assert_same(twin, trained())


@pytest.mark.parametrize('use_buffers', [False, True])
def test_torchs_averaged_model_holds_an_estimate_of_one_moment(use_buffers):
    model = nn.ModuleDict({'bn': nn.BatchNorm2d(2), 'estimator': trained()})
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    for seed in range(20, 24):
        model['estimator'].update(rows(seed))
        average.update_parameters(model)
    assert_same(average.module['estimator'], trained())


def test_it_is_one_tensor_of_integers_that_a_careful_load_takes():
    state = through_a_file(trained().state_dict())
    assert list(state) == ['_extra_state']
    assert state['_extra_state'].dtype == torch.int64
    restored = AdaptiveDensityEstimator(num_centroids=6, dim=4)
    assert str(restored.load_state_dict(state)) == '<All keys matched successfully>'
    assert_same(restored, trained())


def test_packing_keeps_every_bit():
    clusters = Clusters(2, 2, torch.device('cpu'))
    clusters.centroids.copy_(torch.tensor([[-0.0, torch.inf], [1e-45, -3.4e38]]))
    clusters.num_seeded, clusters.num_updates = 2, 7
    state = clusters.pack()
    state[1:, 0], state[1:, 1] = torch.tensor([2**40, 0]), torch.tensor([3, 2**62])
    found = Clusters.unpack(state)
    assert torch.equal(found.centroids.view(torch.int32), clusters.centroids.view(torch.int32))
    assert found.counts.tolist() == [2**40, 0] and found.idle.tolist() == [3, 2**62]
    assert (found.num_seeded, found.num_updates) == (2, 7)


def test_a_state_of_another_schema_starts_afresh_and_says_so():
    state = trained().state_dict()
    state['_extra_state'][0, 2] = 0
    estimator = trained()
    with pytest.warns(UserWarning, match='found one of schema 0 instead of 1: the estimate starts'):
        estimator.load_state_dict(state)
    assert not estimator.ready


def test_a_checkpoint_without_an_estimate_starts_afresh_and_says_so():
    model = nn.ModuleDict({'estimator': trained()})
    with pytest.warns(UserWarning, match=r'\(6, 4\).*found none.*starts afresh'):
        model.load_state_dict({}, strict=True)
    assert not model['estimator'].ready


@pytest.mark.parametrize('options', [{'num_centroids': 5}, {'dim': 3}], ids=str)
def test_an_estimate_of_another_size_starts_afresh_and_says_so(options):
    estimator = AdaptiveDensityEstimator(**{'num_centroids': 6, 'dim': 4, **options})
    with pytest.warns(UserWarning, match=r'found one of shape \(6, 4\): the estimate starts'):
        estimator.load_state_dict(trained().state_dict())
    assert not estimator.ready
    assert estimator.centroids.shape == (estimator.num_centroids, estimator.dim)


class TestWithoutAGivenLength:
    @pytest.mark.parametrize(('num_channels', 'dim'), [(3, 3), (128, 128), (1024, 128)])
    def test_it_is_128_or_the_number_of_channels(self, num_channels, dim):
        estimator = AdaptiveDensityEstimator(num_centroids=6, dim=None)
        assert estimator.dim is None and estimator.centroids is None
        assert estimator.counts is estimator.idle is estimator.weights is None
        assert estimator.resolve_dim(num_channels) == dim == estimator.dim
        estimator.update(rows(0, 8, dim))
        before = estimator.centroids.clone()
        assert estimator.resolve_dim(num_channels) == dim  # again: nothing changes
        assert torch.equal(estimator.centroids, before) and estimator.ready

    def test_more_than_there_are_channels_is_refused(self):
        for estimator in (trained(), AdaptiveDensityEstimator(dim=None)):
            estimator.resolve_dim(4)
            with pytest.raises(ValueError, match='dim=4 is more than the 3 channels'):
                estimator.resolve_dim(3)

    def test_rows_before_it_is_known_are_refused(self):
        estimator = AdaptiveDensityEstimator(dim=None)
        for method in (estimator.update, estimator.log_density):
            with pytest.raises(ValueError, match='resolve_dim'):
                method(rows(0))

    def test_there_is_nothing_to_save_yet(self):
        assert AdaptiveDensityEstimator(dim=None).state_dict() == {}

    def test_what_was_loaded_meanwhile_stays_if_it_fits(self):
        estimator = AdaptiveDensityEstimator(num_centroids=6, dim=None)
        estimator.load_state_dict(trained().state_dict())
        assert estimator.state_dict()  # saved again without being used: not lost
        estimator.resolve_dim(4)
        assert_same(estimator, trained())

    def test_what_was_loaded_meanwhile_goes_if_it_does_not(self):
        estimator = AdaptiveDensityEstimator(num_centroids=6, dim=None)
        estimator.load_state_dict(trained().state_dict())
        with pytest.warns(UserWarning, match=r'\(6, 5\).*\(6, 4\).*starts afresh'):
            estimator.resolve_dim(5)
        assert not estimator.ready and estimator.centroids.shape == (6, 5)


class TestDevice:
    def test_built_without_memory_it_starts_where_it_is_put(self):
        with torch.device('meta'):
            estimator = AdaptiveDensityEstimator(num_centroids=6, dim=4)
        estimator.to_empty(device='cpu')
        for seed in range(10):
            estimator.update(rows(seed))
        assert_same(estimator, trained())

    def test_it_goes_along_with_the_model(self):
        model = nn.ModuleDict({'estimator': trained()}).to('meta')
        state = model['estimator']
        assert {t.device.type for t in (state.centroids, state.counts, state.idle)} == {'meta'}

    def test_it_goes_where_the_rows_are(self):
        """A wrapper that moves parameters and buffers one by one does not know of it."""
        with torch.device('meta'):
            estimator = AdaptiveDensityEstimator(num_centroids=6, dim=4)
        with torch.inference_mode(), warnings.catch_warnings():
            estimator.update(rows(0))
        estimator.load_state_dict(trained().state_dict())
        assert_same(estimator, trained())

    def test_a_state_is_taken_from_any_type_of_checkpoint_tensor(self):
        restored = AdaptiveDensityEstimator(num_centroids=6, dim=4)
        state = trained().state_dict()
        restored.load_state_dict(state)
        state['_extra_state'].zero_()  # nothing is shared with it
        assert_same(restored, trained())
