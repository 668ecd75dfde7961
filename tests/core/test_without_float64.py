"""A device that has no float64, such as Apple's, on a CPU that refuses it."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pfb_mmseg.core import AdaptiveDensityEstimator, bandwidth, pool_features
from pfb_mmseg.core.density import widest_float
from pfb_mmseg.core.selection import explored_log_density, keep_highest

from . import oracle


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
        return result


@pytest.fixture(autouse=True)
def no_float64():
    widest_float.cache_clear()
    with NoFloat64():
        yield
    widest_float.cache_clear()


def test_the_mode_refuses_and_the_type_is_found_by_trying():
    with pytest.raises(TypeError):
        torch.ones(1).double()
    assert widest_float('cpu') == torch.float32


def seeded(centroids, **options):
    num, dim = centroids.shape
    estimator = AdaptiveDensityEstimator(num_centroids=num, dim=dim, **options)
    estimator.update(torch.from_numpy(centroids))
    return estimator


# Shift and scale as of features, far from zero, and at the edge of what float32 tells apart.
CASES = [(1.0, 0.0), (1e3, 0.0), (1e-3, 0.0), (0.1, 1.0), (1.0, 1e3), (1e-3, 1e3), (1e-3, -1e3)]


@pytest.mark.parametrize(('scale', 'shift'), CASES)
@pytest.mark.parametrize('rule', ['silverman', 'scott', 'identity'])
def test_log_density_agrees_with_the_oracle(rule, scale, shift):
    for dim, num_centroids in ((1, 2), (16, 64), (128, 64), (512, 128)):
        rng = np.random.default_rng(dim)
        unit = rng.normal(size=(num_centroids, dim)) * rng.uniform(0.5, 2, size=dim)
        near = unit[rng.integers(num_centroids, size=32)]
        x = near + rng.normal(size=near.shape) * rng.choice([0.1, 1.0, 10.0], size=(32, 1))
        centroids, x = (np.float32(a * scale + shift) for a in (unit, x))
        estimator = seeded(centroids, bandwidth=rule)
        actual = estimator.log_density(torch.from_numpy(x)).numpy()
        expected = oracle.eq4_log_density(x, centroids, np.ones(num_centroids), rule)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize('constant', [0.0, 0.1, 1000.1, -1e6])
def test_a_constant_channel_takes_the_mean_spread_of_the_others(constant):
    centroids = np.random.default_rng(0).normal(size=(512, 16)).astype(np.float32)
    centroids[:, 5] = constant
    np.testing.assert_allclose(
        bandwidth(torch.from_numpy(centroids)).numpy(),
        oracle.eq6_sqrt_bandwidth(centroids),
        rtol=1e-5,
    )


def test_the_state_follows_the_oracle_over_a_stream():
    estimator = AdaptiveDensityEstimator(num_centroids=12, dim=8, revive_after=None)
    reference = oracle.Estimator(12, 8)
    rng = np.random.default_rng(0)
    for _ in range(30):
        x = rng.normal(size=(8, 8)).astype(np.float32)
        estimator.update(torch.from_numpy(x))
        reference.update(x)
        seeded = len(reference.centroids)
        np.testing.assert_allclose(
            estimator.centroids[:seeded].numpy(), reference.centroids, 1e-4, 1e-5
        )
        assert estimator.counts[:seeded].tolist() == reference.counts.tolist()


def test_a_whole_decision_and_a_rest_in_a_state_dict_need_no_float64():
    estimator = AdaptiveDensityEstimator(num_centroids=6, dim=None, revive_after=1)
    for seed in range(6):
        features = torch.randn(8, 12, 2, 2, generator=torch.Generator().manual_seed(seed))
        x = pool_features(features, estimator.resolve_dim(12))
        kept = torch.arange(4)
        if estimator.ready:
            kept = keep_highest(-explored_log_density(estimator.log_density(x)), 4)
        estimator.update(x[kept])
    estimator.load_state_dict(estimator.state_dict())
    assert estimator.ready and estimator.centroids.isfinite().all()


def test_rows_that_are_not_finite_or_far_are_treated_alike():
    estimator = seeded(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    x = torch.zeros(5, 4)
    x[1, 0], x[2, 1], x[3, 2], x[4] = torch.nan, torch.inf, -torch.inf, 3e38
    log_density = estimator.log_density(x)
    assert log_density.isfinite().tolist() == [True, False, False, False, True]
    estimator.update(x)
    assert estimator.centroids.isfinite().all()


def test_autocast_does_not_touch_it():
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    plain, cast = (AdaptiveDensityEstimator(num_centroids=8, dim=16) for _ in range(2))
    plain.update(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast.update(x)
        actual = cast.log_density(x)
    assert torch.equal(cast.centroids, plain.centroids)
    assert torch.equal(actual, plain.log_density(x))
