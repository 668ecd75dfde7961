"""Eq. 4-6: the log density against the float64 oracle and against foreign implementations."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import gaussian_kde, multivariate_normal
from sklearn.neighbors import KernelDensity

from pfb_mmseg.core import AdaptiveDensityEstimator, density

from . import oracle

SCALES_AND_SHIFTS = [(scale, shift) for scale in (1e-3, 1.0, 1e3) for shift in (0.0, 1e3, -1e3)]
BANDWIDTHS = ('silverman', 'scott', 'identity')


def seeded(centroids, counts=None, **options):
    """An estimator whose centroids are the given rows, with the given counts."""
    centroids = torch.as_tensor(centroids, dtype=torch.float32)
    estimator = AdaptiveDensityEstimator(
        num_centroids=centroids.shape[0], dim=centroids.shape[1], **options
    )
    estimator.update(centroids)
    assert estimator.ready
    if counts is not None:
        state = estimator.get_extra_state()
        state[1:, 0] = torch.as_tensor(counts)
        estimator.set_extra_state(state)
    return estimator


def uneven_counts(num_centroids, kind):
    """Counts that are equal, spread over 1:1e6, or spread so and partly zero."""
    if kind == 'uniform' or num_centroids == 1:
        return np.ones(num_centroids, dtype=np.int64)
    counts = np.round(np.logspace(0, 6, num_centroids)).astype(np.int64)
    if kind == 'empty':
        counts[: num_centroids // 2] = 0
    return counts


def points(rng, centroids, num):
    """Rows near centroids, between them and far from all, as float64 in the centroids' unit."""
    near = centroids[rng.integers(len(centroids), size=num)]
    return near + rng.normal(size=near.shape) * rng.choice([0.1, 1.0, 10.0], size=(num, 1))


def assert_close(actual, expected):
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.double().numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('num_centroids', [1, 2, 64, 512])
@pytest.mark.parametrize('dim', [1, 16, 128, 1024])
def test_log_density_agrees_with_the_oracle(dim, num_centroids):
    rng = np.random.default_rng(1000 * dim + num_centroids)
    unit_centroids = rng.normal(size=(num_centroids, dim)) * rng.uniform(0.5, 2, size=dim)
    for case, (scale, shift) in enumerate(SCALES_AND_SHIFTS):
        num = (
            256
            if case == (dim + num_centroids) % 9 or dim * num_centroids < 4096
            else (1, 8)[case % 2]
        )
        centroids = np.float32(unit_centroids * scale + shift)
        x = np.float32(points(rng, unit_centroids, num) * scale + shift)
        counts = uneven_counts(num_centroids, ('uniform', 'uneven', 'empty')[case % 3])
        bandwidth = BANDWIDTHS[(case // 3 + case) % 3]
        weighted = case != 4
        estimator = seeded(centroids, counts, bandwidth=bandwidth, weighted=weighted)
        expected = oracle.eq4_log_density(x, centroids, counts, bandwidth, weighted)
        assert_close(estimator.log_density(torch.from_numpy(x)), expected)


@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('kind', ['uniform', 'uneven', 'empty'])
@pytest.mark.parametrize('bandwidth', BANDWIDTHS)
def test_every_option_agrees_with_the_oracle(bandwidth, kind, weighted):
    for num, (scale, shift) in itertools.product((1, 8, 256), SCALES_AND_SHIFTS):
        rng = np.random.default_rng(num)
        unit_centroids = rng.normal(size=(16, 8))
        centroids = np.float32(unit_centroids * scale + shift)
        x = np.float32(points(rng, unit_centroids, num) * scale + shift)
        counts = uneven_counts(16, kind)
        estimator = seeded(centroids, counts, bandwidth=bandwidth, weighted=weighted)
        expected = oracle.eq4_log_density(x, centroids, counts, bandwidth, weighted)
        assert_close(estimator.log_density(torch.from_numpy(x)), expected)


@pytest.mark.parametrize('dim', [1, 4, 16])
@pytest.mark.parametrize('bandwidth', BANDWIDTHS)
def test_log_density_agrees_with_scikit_learn_on_whitened_data(bandwidth, dim):
    rng = np.random.default_rng(dim)
    centroids = rng.normal(size=(64, dim)).astype(np.float32).astype(np.float64)
    x = points(rng, centroids, 32).astype(np.float32).astype(np.float64)
    counts = rng.integers(1, 1000, size=64)
    if bandwidth == 'identity':
        sqrt_h = np.ones(dim)
    else:
        kde = gaussian_kde(centroids.T + 1e-9 * rng.normal(size=(dim, 64)))
        factor = kde.silverman_factor() if bandwidth == 'silverman' else kde.scotts_factor()
        sqrt_h = factor * centroids.std(axis=0)
    for weighted in (True, False):
        foreign = KernelDensity(kernel='gaussian', bandwidth=1.0).fit(
            centroids / sqrt_h, sample_weight=counts if weighted else None
        )
        expected = foreign.score_samples(x / sqrt_h) - np.log(sqrt_h).sum()
        # Eq. 4 divides by N_C although Eq. 9's weights already sum to one.
        expected -= np.log(64) if weighted else 0
        estimator = seeded(centroids, counts, bandwidth=bandwidth, weighted=weighted)
        assert_close(estimator.log_density(torch.from_numpy(x).float()), expected)


@pytest.mark.parametrize('dim', [2, 128])
def test_log_density_agrees_with_scipys_multivariate_normal(dim):
    rng = np.random.default_rng(dim)
    centroids = rng.normal(size=(8, dim)).astype(np.float32).astype(np.float64)
    x = points(rng, centroids, 16).astype(np.float32).astype(np.float64)
    counts = uneven_counts(8, 'uneven')
    covariance = (8 ** (-1 / (dim + 4)) * centroids.std(axis=0)) ** 2
    kernels = [multivariate_normal(c, np.diag(covariance)).logpdf(x) for c in centroids]
    expected = logsumexp(kernels, axis=0, b=(counts / counts.sum() / 8)[:, None])
    estimator = seeded(centroids, counts, bandwidth='scott')
    assert_close(estimator.log_density(torch.from_numpy(x).float()), expected)


@pytest.mark.parametrize('shift', [0.0, 1e3])
def test_from_differences_float64_gives_what_the_matrix_product_gives(shift):
    """An accelerator with float64 takes the one, a CPU the other."""
    rng = np.random.default_rng(0)
    centroids, x = (torch.from_numpy(shift + rng.normal(size=(n, 128))) for n in (64, 16))
    x[3, 5], x[4, 6], x[5, 7] = torch.nan, torch.inf, -torch.inf
    product = density.Mixture.build(centroids, torch.zeros(64).double())
    assert product.bias is not None
    differences = product._replace(origin=None, centroids=centroids / product.scale, bias=None)
    torch.testing.assert_close(differences.log_density(x), product.log_density(x), equal_nan=True)


def test_a_row_is_scored_the_same_alone_and_in_a_batch():
    rng = np.random.default_rng(0)
    estimator = seeded(rng.normal(size=(64, 128)))
    x = torch.from_numpy(rng.normal(size=(16, 128))).float()
    alone = torch.cat([estimator.log_density(row[None]) for row in x])
    torch.testing.assert_close(alone, estimator.log_density(x), rtol=1e-5, atol=1e-4)


def test_scoring_leaves_the_state_alone():
    rng = np.random.default_rng(0)
    estimator = seeded(rng.normal(size=(8, 4)))
    before = {key: torch.as_tensor(value).clone() for key, value in estimator.state_dict().items()}
    estimator.log_density(torch.randn(16, 4))
    after = estimator.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], torch.as_tensor(after[key])) for key in before)


# Hard inputs.


def test_identical_centroids_have_unit_spread():
    centroids = np.full((4, 3), 2.5)
    x = np.float32([[2.5, 2.5, 2.5], [3.5, 2.5, 2.0]])
    for bandwidth in BANDWIDTHS:
        estimator = seeded(centroids, bandwidth=bandwidth)
        expected = oracle.eq4_log_density(x, centroids, np.ones(4), bandwidth)
        assert_close(estimator.log_density(torch.from_numpy(x)), expected)


@pytest.mark.parametrize('constant', [0.0, 0.1, 1000.1, -1e6])
def test_a_constant_channel_takes_the_mean_spread_of_the_others(constant):
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(512, 16)).astype(np.float32)
    centroids[:, 5] = constant
    x = rng.normal(size=(8, 16)).astype(np.float32)
    x[:4, 5] = constant
    x[4:, 5] = np.float32(constant) + 3
    assert_close(
        seeded(centroids).log_density(torch.from_numpy(x)),
        oracle.eq4_log_density(x, centroids, np.ones(512), 'silverman'),
    )


def test_a_channel_a_million_times_larger_than_the_rest_does_not_drown_them():
    rng = np.random.default_rng(0)
    scale = np.ones(16)
    scale[3] = 1e6
    centroids = np.float32(rng.normal(size=(64, 16)) * scale)
    # Some rows far from everything, some beside a centroid, where the small channels decide.
    x = np.float32(rng.normal(size=(32, 16)) * scale)
    x[16:] = centroids[:16] + np.float32(0.5 * rng.normal(size=(16, 16)))
    for bandwidth in ('silverman', 'scott'):
        assert_close(
            seeded(centroids, bandwidth=bandwidth).log_density(torch.from_numpy(x)),
            oracle.eq4_log_density(x, centroids, np.ones(64), bandwidth),
        )


def test_log_density_is_finite_however_far_a_row_lies():
    rng = np.random.default_rng(0)
    estimator = seeded(rng.normal(size=(64, 128)))
    for distance in (1e3, 1e6, 1e12, 1e18, 1e25, 1e30, 3e38):
        log_density = estimator.log_density(torch.full((2, 128), distance))
        assert log_density.isfinite().all(), distance
    near, far = estimator.log_density(torch.tensor([[1.0] * 128, [1e6] * 128]))
    assert near > far


def test_only_the_rows_with_nan_or_inf_have_nan_for_a_density():
    rng = np.random.default_rng(0)
    estimator = seeded(rng.normal(size=(8, 4)))
    clean = torch.from_numpy(rng.normal(size=(6, 4))).float()
    dirty = clean.clone()
    dirty[1, 0], dirty[3, 2], dirty[4, 3] = float('nan'), float('inf'), -float('inf')
    log_density = estimator.log_density(dirty)
    assert log_density.isnan().tolist() == [False, True, False, True, True, False]
    rest = [0, 2, 5]
    torch.testing.assert_close(log_density[rest], estimator.log_density(clean)[rest])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_scored_in_float32(dtype):
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(64, 128))
    estimator = seeded(centroids)
    x = torch.from_numpy(rng.normal(size=(8, 128))).to(dtype)
    expected = oracle.eq4_log_density(
        x.double().numpy(), np.float32(centroids), np.ones(64), 'silverman'
    )
    assert_close(estimator.log_density(x), expected)


def test_autocast_does_not_touch_the_density():
    rng = np.random.default_rng(0)
    estimator = seeded(rng.normal(size=(64, 128)))
    x = torch.from_numpy(rng.normal(size=(8, 128))).bfloat16()
    expected = estimator.log_density(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(estimator.log_density(x), expected, rtol=0, atol=0)
