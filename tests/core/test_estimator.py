"""Eq. 7-9: how centroids, counts and weights move, and that the centroids stay alive."""

import copy
import io

import numpy as np
import pytest
import torch

from pfb_mmseg.core import AdaptiveDensityEstimator

from . import oracle

BANDWIDTHS = ('silverman', 'scott', 'identity')


def mixture_stream(seed, num_batches, dim, kinds=12, max_rows=8):
    """Float32 batches of varying length from a few clusters that drift a little."""
    rng = np.random.default_rng(seed)
    means, drift = 3 * rng.normal(size=(2, kinds, dim))
    for t in range(num_batches):
        kind = rng.integers(kinds, size=rng.integers(1, max_rows + 1))
        x = means[kind] + t / num_batches * drift[kind] + 0.5 * rng.normal(size=(len(kind), dim))
        yield x.astype(np.float32)


def paper_estimator(num_centroids, dim, **options):
    return AdaptiveDensityEstimator(
        num_centroids=num_centroids, dim=dim, revive_after=None, **options
    )


def assert_same_state(estimator, reference):
    """Product's state against the oracle's; while seeding, only the seeded part is compared."""
    num_seeded = len(reference.centroids)
    np.testing.assert_allclose(
        estimator.centroids[:num_seeded].double().numpy(), reference.centroids, 1e-4, 1e-5
    )
    np.testing.assert_array_equal(estimator.counts[:num_seeded].numpy(), reference.counts)
    assert int(estimator.counts[num_seeded:].sum()) == 0
    assert estimator.ready is reference.ready


# Eq. 7-9 against the oracle.


@pytest.mark.parametrize('momentum', [0.0, 0.01, 0.5, 0.99])
def test_the_state_follows_the_oracle_over_a_stream(momentum):
    for seed, (num_centroids, dim) in enumerate([(1, 1), (2, 16), (16, 4), (12, 64)]):
        estimator = paper_estimator(num_centroids, dim, momentum=momentum)
        reference = oracle.Estimator(num_centroids, dim, momentum=momentum)
        for x in mixture_stream(seed, 40, dim):
            estimator.update(torch.from_numpy(x))
            reference.update(x)
            assert_same_state(estimator, reference)
            if reference.ready:
                np.testing.assert_allclose(
                    estimator.weights.numpy(), oracle.eq9_weights(reference.counts), 1e-6
                )


@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('bandwidth', BANDWIDTHS)
def test_the_density_follows_the_oracle_over_a_stream(bandwidth, weighted):
    options = dict(bandwidth=bandwidth, weighted=weighted)
    estimator = paper_estimator(8, 6, **options)
    reference = oracle.Estimator(8, 6, **options)
    for x in mixture_stream(3, 30, 6):
        estimator.update(torch.from_numpy(x))
        reference.update(x)
        if reference.ready:
            np.testing.assert_allclose(
                estimator.log_density(torch.from_numpy(x)).numpy(),
                reference.log_density(x),
                rtol=1e-4,
                atol=1e-3,
            )


def test_weights_are_eq_9_when_every_iteration_retains_the_same_number():
    prune_ratio, batch_size, num_iterations = 0.5, 8, 30
    num_kept = int((1 - prune_ratio) * batch_size)
    estimator = paper_estimator(4, 3)
    for x in torch.randn(num_iterations, num_kept, 3, generator=torch.manual_seed(0)):
        estimator.update(x)
    expected = estimator.counts.double() / (num_iterations * (1 - prune_ratio) * batch_size)
    torch.testing.assert_close(estimator.weights.double(), expected, rtol=1e-6, atol=0)


def test_the_centroids_keep_their_size_where_eq_8_as_printed_shrinks_them():
    estimator = paper_estimator(16, 8)
    for x in mixture_stream(0, 16, 8):
        estimator.update(torch.from_numpy(x))
    assert estimator.ready
    before = estimator.centroids.abs().mean()
    for x in mixture_stream(1, 100, 8):
        estimator.update(torch.from_numpy(x))
    assert estimator.centroids.abs().mean() > before / 2


@pytest.mark.parametrize('momentum', [0.0, 0.1])
def test_a_cluster_that_receives_nothing_keeps_every_bit(momentum):
    seeds = torch.randn(16, 8, generator=torch.manual_seed(0))
    estimator = paper_estimator(16, 8, momentum=momentum)
    estimator.update(seeds)
    for _ in range(50):
        estimator.update(seeds[:3] + 1e-3)
    assert torch.equal(estimator.centroids[3:], seeds[3:])
    assert not torch.equal(estimator.centroids[:3], seeds[:3])


@pytest.mark.parametrize('momentum', [0.0, 0.1])
def test_an_empty_cluster_that_receives_nothing_stays_finite_and_empty(momentum):
    estimator = paper_estimator(3, 1, momentum=momentum)
    estimator.update(torch.tensor([[1.0], [float('nan')], [5.0]]))
    for _ in range(9):
        estimator.update(torch.tensor([[float('nan')], [1.0]]))  # the first row could fill it
        assert estimator.counts[1].item() == 0
        assert estimator.centroids.isfinite().all()
        assert estimator.log_density(torch.tensor([[3.0]])).isfinite().all()


def test_a_tie_goes_to_the_lowest_index():
    estimator = paper_estimator(3, 1)
    estimator.update(torch.tensor([[1.0], [-1.0], [1.0]]))
    estimator.update(torch.tensor([[0.0], [1.0]]))
    assert estimator.counts.tolist() == [3, 1, 1]


def test_assignment_survives_a_large_common_shift():
    rng = np.random.default_rng(0)
    seeds = np.float32(1e3 + 1e-2 * rng.normal(size=(16, 8)))
    x = np.float32(1e3 + 1e-2 * rng.normal(size=(64, 8)))
    estimator = paper_estimator(16, 8)
    estimator.update(torch.from_numpy(seeds))
    estimator.update(torch.from_numpy(x))
    assignment = oracle.eq7_assign(x.astype(float), seeds.astype(float))
    assert estimator.counts.tolist() == (1 + np.bincount(assignment, minlength=16)).tolist()


# Seeding.


def test_the_first_rows_become_the_centroids_and_the_rest_of_the_call_updates_them():
    x = torch.tensor([[0.0], [10.0], [1.0], [9.0], [11.0]])
    estimator = paper_estimator(2, 1, momentum=0.5)  # the running mean
    estimator.update(x)
    assert estimator.ready is True
    torch.testing.assert_close(estimator.centroids, torch.tensor([[0.5], [10.0]]))
    assert estimator.counts.tolist() == [2, 3]


def test_seeding_goes_on_over_calls_and_ready_says_when_it_is_done():
    x = torch.arange(12.0).reshape(6, 2)
    estimator = paper_estimator(5, 2)
    seen = [estimator.ready]
    for part in x[:5].split([2, 1, 2]):
        estimator.update(part)
        seen.append(estimator.ready)
    assert seen == [False, False, False, True]
    assert torch.equal(estimator.centroids, x[:5])
    assert estimator.counts.tolist() == [1] * 5


def test_an_update_with_no_rows_changes_nothing():
    estimator = paper_estimator(2, 1)
    estimator.update(torch.empty(0, 1))
    assert estimator.ready is False
    estimator.update(torch.tensor([[0.0], [1.0]]))
    estimator.update(torch.empty(0, 1))
    assert estimator.centroids.tolist() == [[0.0], [1.0]]
    assert estimator.counts.tolist() == [1, 1]


# Hard inputs.


@pytest.mark.parametrize('revive_after', [None, 100])
def test_rows_with_nan_or_inf_change_nothing(revive_after):
    rng = np.random.default_rng(0)
    seeds, clean = torch.from_numpy(rng.normal(size=(2, 6, 4))).float()
    dirty = torch.cat([clean[:1], torch.full((1, 4), float('nan')), clean[:2], clean[1:]])
    dirty[2, 1], dirty[3, 2] = float('inf'), -float('inf')
    a, b = (
        AdaptiveDensityEstimator(num_centroids=6, dim=4, revive_after=revive_after)
        for _ in range(2)
    )
    for estimator, x in ((a, dirty), (b, clean)):
        estimator.update(seeds)
        estimator.update(x)
    torch.testing.assert_close(a.centroids, b.centroids)
    assert a.counts.tolist() == b.counts.tolist()


def test_while_seeding_a_row_with_nan_leaves_an_empty_cluster_that_the_next_row_fills():
    estimator = AdaptiveDensityEstimator(num_centroids=4, dim=2)
    estimator.update(torch.tensor([[0.0, 1.0], [float('nan'), 0.0], [2.0, 3.0], [4.0, 5.0]]))
    assert estimator.ready is True
    assert estimator.counts.tolist() == [1, 0, 1, 1]
    assert estimator.centroids[[0, 2, 3]].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert estimator.centroids.isfinite().all()
    estimator.update(torch.tensor([[9.0, 9.0]]))
    assert estimator.centroids[1].tolist() == [9.0, 9.0]
    assert estimator.counts.tolist() == [1, 1, 1, 1]


def test_seeding_with_nothing_but_nan_recovers():
    estimator = AdaptiveDensityEstimator(num_centroids=3, dim=2)
    estimator.update(torch.full((3, 2), float('nan')))
    assert estimator.counts.sum().item() == 0
    assert estimator.log_density(torch.zeros(2, 2)).isfinite().all()
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    for _ in range(40):
        for row in x:
            estimator.update(row[None])
    torch.testing.assert_close(torch.tensor(sorted(estimator.centroids.tolist())), x)
    assert estimator.counts.sum().item() == 120


def test_identical_rows_leave_finite_state():
    estimator = paper_estimator(8, 4)
    x = torch.full((4, 4), 0.3)
    for _ in range(10):
        estimator.update(x)
    torch.testing.assert_close(estimator.centroids, torch.full((8, 4), 0.3))
    assert estimator.counts.sum().item() == 40
    assert estimator.log_density(x).isfinite().all()


def test_fewer_distinct_rows_than_centroids():
    estimator = paper_estimator(8, 2)
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, -1.0]])
    reference = oracle.Estimator(8, 2)
    for _ in range(10):
        estimator.update(x)
        reference.update(x.numpy())
        assert_same_state(estimator, reference)
    np.testing.assert_allclose(
        estimator.log_density(x).numpy(), reference.log_density(x.numpy()), 1e-5, 1e-4
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_update_float32_centroids(dtype):
    estimator, reference = paper_estimator(4, 3), oracle.Estimator(4, 3)
    for x in torch.randn(10, 3, 3, generator=torch.manual_seed(0)).to(dtype):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            estimator.update(x)
        reference.update(x.double().numpy())
        assert_same_state(estimator, reference)
    assert estimator.centroids.dtype == torch.float32
    assert estimator.counts.dtype == torch.int64


def test_rows_that_require_grad_leave_no_graph_behind():
    estimator = paper_estimator(2, 3)
    x = torch.randn(6, 3, requires_grad=True)
    estimator.update(x)
    estimator.update(x * 2)
    assert not estimator.centroids.requires_grad
    assert not estimator.log_density(x).requires_grad


def test_counts_stay_exact_beyond_what_float32_can_count():
    estimator = paper_estimator(2, 1)
    estimator.update(torch.tensor([[0.0], [10.0]]))
    state = estimator.get_extra_state()
    state[1:, 0] = torch.tensor([2**24, 2**25])
    estimator.set_extra_state(state)
    estimator.update(torch.tensor([[0.0], [10.0], [0.0]]))
    assert estimator.counts.tolist() == [2**24 + 2, 2**25 + 1]


# State.


def through_memory(state):
    return copy.deepcopy(state)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize('carry', [through_memory, through_a_file])
@pytest.mark.parametrize('num_updates', [0, 1, 3, 40, 150])
def test_state_dict_restores_everything(num_updates, carry):
    batches = list(mixture_stream(0, num_updates + 120, 4))
    original, restored = (AdaptiveDensityEstimator(num_centroids=16, dim=4) for _ in range(2))
    for x in batches[:num_updates]:
        original.update(torch.from_numpy(x))
    restored.load_state_dict(carry(original.state_dict()))
    # Long enough for a centroid that is idle now to be revived later, in both at the same update.
    for x in map(torch.from_numpy, batches[num_updates:]):
        assert restored.ready is original.ready
        if original.ready:
            assert torch.equal(restored.log_density(x), original.log_density(x))
        original.update(x)
        restored.update(x)
        assert torch.equal(restored.centroids, original.centroids)
        assert torch.equal(restored.counts, original.counts)


# Centroids stay alive.


def drifting_stream(seed, num_updates=1200, dim=32, kinds=200):
    """4-8 rows an update from long-tailed clusters that move as features in training do.

    Untrained, all images look alike; features spread out and move quickly at first, then slowly.
    """
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, kinds + 1)
    early, late, slow = rng.normal(size=(3, kinds, dim))
    start, quick_shift, slow_shift = rng.normal(size=(3, dim))
    for t in range(num_updates):
        quick, progress = 1 - np.exp(-t / 60), t / num_updates
        centre = start + 3 * quick * quick_shift + 0.5 * progress * slow_shift
        means = (1 - quick) * early + quick * late + 0.5 * progress * slow
        kind = rng.choice(kinds, size=rng.integers(4, 9), p=share / share.sum())
        x = means[kind] + 0.3 * rng.normal(size=(len(kind), dim))
        yield (centre + (0.05 + 0.95 * quick) * x).astype(np.float32)


def alive_shares(seed, warm_up=200, window=200, **options):
    """Share of 64 centroids that receive a sample, for windows over the stream.

    A centroid moves exactly when it receives a sample: empty clusters stay where they are, and a
    revived one jumps to its new sample.
    """
    estimator = AdaptiveDensityEstimator(num_centroids=64, dim=32, **options)
    moved, total = [], 0
    for x in drifting_stream(seed):
        before = estimator.centroids.clone()
        estimator.update(torch.from_numpy(x))
        moved.append((estimator.centroids != before).any(dim=1))
        total += len(x)
        assert estimator.counts.sum().item() == total
    moved = torch.stack(moved)
    starts = range(warm_up, len(moved) - window + 1, 10)
    return [moved[start : start + window].any(dim=0).float().mean().item() for start in starts]


@pytest.mark.parametrize('seed', range(3))
def test_after_the_warm_up_nine_in_ten_centroids_receive_samples(seed):
    assert min(alive_shares(seed)) >= 0.9


def test_without_reviving_most_centroids_die():
    assert max(alive_shares(0, revive_after=None)) < 0.5


def test_a_revived_centroid_is_the_new_sample_and_its_count_goes_to_its_neighbour():
    estimator = AdaptiveDensityEstimator(num_centroids=3, dim=1, revive_after=5)
    estimator.update(torch.tensor([[0.0], [100.0], [104.0]]))
    for _ in range(3):
        estimator.update(torch.tensor([[0.0], [100.0]]))
    assert estimator.centroids.tolist() == [[0.0], [100.0], [104.0]]
    assert estimator.counts.tolist() == [4, 4, 1]
    for _ in range(8):
        estimator.update(torch.tensor([[0.0], [100.0]]))
    assert estimator.centroids[2].item() in (0.0, 100.0)
    # Its one sample lay nearest to the centroid at 100, which now speaks for it.
    assert sorted(estimator.centroids[:2].flatten().tolist()) == [0.0, 100.0]
    assert estimator.counts.sum().item() == 25


def test_centroids_that_receive_samples_are_not_revived():
    batches = [x for x in mixture_stream(5, 60, 4, kinds=4)]
    means = torch.from_numpy(np.concatenate(batches))
    a = AdaptiveDensityEstimator(num_centroids=1, dim=4, revive_after=1)
    b = paper_estimator(1, 4)
    for row in means:
        a.update(row[None])
        b.update(row[None])
    assert torch.equal(a.centroids, b.centroids)
    assert torch.equal(a.counts, b.counts)


# Bad arguments.


@pytest.mark.parametrize(
    'option, value',
    [
        ('num_centroids', 0),
        ('dim', 12.5),
        ('bandwidth', 'gauss'),
        ('weighted', 'maybe'),
        ('momentum', 1.0),
        ('revive_after', 0),
    ],
)
def test_a_bad_option_is_refused_by_name_and_value(option, value):
    with pytest.raises((ValueError, TypeError)) as error:
        AdaptiveDensityEstimator(**{'num_centroids': 8, 'dim': 4, option: value})
    assert option in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize('method', ['log_density', 'update'])
@pytest.mark.parametrize('shape', [(4,), (2, 5), (2, 3), (2, 4, 1)])
def test_rows_of_the_wrong_shape_are_refused(method, shape):
    estimator = AdaptiveDensityEstimator(num_centroids=3, dim=4)
    estimator.update(torch.randn(3, 4))
    with pytest.raises(ValueError) as error:
        getattr(estimator, method)(torch.zeros(shape))
    assert str(tuple(shape)) in str(error.value)
    assert '4' in str(error.value)
