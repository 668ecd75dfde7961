"""What holds for every stream, by hypothesis: invariances, conservation, reproducibility."""

import copy

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner
from pfb_mmseg.core.selection import explored_log_density, keep_highest

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def rows(seed, num, dim=4, kinds=5):
    rng = np.random.default_rng(seed)
    means = 5 * rng.normal(size=(kinds, dim))
    x = means[rng.integers(kinds, size=num)] + rng.normal(size=(num, dim))
    return torch.from_numpy(x).float()


def maps(seed, num):
    return rows(seed, num, dim=8)[:, :, None, None].expand(-1, -1, 2, 3)


def cut(x, seed):
    """The rows in order, in batches of 1 to 9."""
    rng = np.random.default_rng(seed)
    sizes = []
    while sum(sizes) < len(x):
        sizes.append(int(min(rng.integers(1, 10), len(x) - sum(sizes))))
    return x.split(sizes)


# Selection.


@SETTINGS
@given(
    values=st.lists(
        st.floats(-300, 300, width=32) | st.just(float('nan')), min_size=1, max_size=40
    ),
    share=st.floats(0, 1),
    exploration=st.sampled_from([0.0, 0.01, 1.0, 1e6]),
    seed=SEEDS,
)
def test_exactly_num_keep_distinct_ascending_indices(values, share, exploration, seed):
    num_keep = max(1, round(share * len(values)))
    draws = torch.Generator().manual_seed(seed)
    importance = -explored_log_density(torch.tensor(values), exploration, draws)
    chosen = keep_highest(importance, num_keep).tolist()
    assert len(chosen) == num_keep
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] and chosen[-1] < len(values)


@SETTINGS
@given(
    values=st.lists(st.floats(-300, 300, width=32), min_size=2, max_size=40, unique=True),
    share=st.floats(0, 1),
    seed=SEEDS,
)
def test_permuting_the_importance_permutes_the_choice(values, share, seed):
    importance = torch.tensor(values)
    num_keep = max(1, round(share * len(values)))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(values)))
    chosen = keep_highest(importance, num_keep)
    permuted = keep_highest(importance[order], num_keep)
    assert set(order[permuted].tolist()) == set(chosen.tolist())


@SETTINGS
@given(
    values=st.lists(st.floats(-300, 300, width=32), min_size=2, max_size=40),
    share=st.floats(0, 1),
)
def test_nothing_pruned_is_more_important_than_anything_kept(values, share):
    importance = torch.tensor(values)
    num_keep = max(1, round(share * len(values)))
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[keep_highest(importance, num_keep)] = True
    if num_keep < len(values):
        assert importance[kept].min() >= importance[~kept].max()


@SETTINGS
@given(seed=SEEDS, num=st.integers(2, 24))
def test_permuting_the_batch_permutes_the_selection(seed, num):
    estimator = dict(num_centroids=6, dim=4)
    pruner = BatchPruner(0.5, dict(type='rare', exploration=0, estimator=estimator))
    pruner(maps(seed, 6))
    twin = copy.deepcopy(pruner)
    features = maps(seed + 1, num)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num))
    kept, permuted = pruner(features).indices, twin(features[order]).indices
    assert set(order[permuted].tolist()) == set(kept.tolist())
    torch.testing.assert_close(twin.estimator.centroids, pruner.estimator.centroids)
    assert torch.equal(twin.estimator.counts, pruner.estimator.counts)


# Estimator.


@SETTINGS
@given(seed=SEEDS, num=st.integers(1, 80))
def test_with_momentum_one_half_a_centroid_is_the_mean_however_the_stream_is_cut(seed, num):
    x = rows(seed, num)
    options = dict(num_centroids=1, dim=4, momentum=0.5)
    whole, parts = (AdaptiveDensityEstimator(**options) for _ in range(2))
    whole.update(x)
    for part in cut(x, seed):
        parts.update(part)
    torch.testing.assert_close(whole.centroids[0], x.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.centroids, whole.centroids, rtol=1e-4, atol=1e-4)
    assert parts.counts.tolist() == whole.counts.tolist() == [num]


@SETTINGS
@given(seed=SEEDS, num=st.integers(0, 80))
def test_means_of_separate_clusters_do_not_depend_on_the_cut(seed, num):
    rng = np.random.default_rng(seed)
    means = 100 * np.eye(5)
    kind = np.concatenate([rng.permutation(5), rng.integers(5, size=num)])
    x = torch.from_numpy(means[kind] + rng.uniform(-1, 1, size=(len(kind), 5))).float()
    options = dict(num_centroids=5, dim=5, momentum=0.5, revive_after=None)
    whole, parts = (AdaptiveDensityEstimator(**options) for _ in range(2))
    whole.update(x)
    for part in cut(x, seed):
        parts.update(part)
    assert parts.counts.tolist() == whole.counts.tolist()
    torch.testing.assert_close(parts.centroids, whole.centroids, rtol=1e-5, atol=1e-4)
    for j, k in enumerate(kind[:5]):
        torch.testing.assert_close(
            parts.centroids[j], x[torch.from_numpy(kind == k)].mean(dim=0), rtol=1e-5, atol=1e-4
        )


@SETTINGS
@given(seed=SEEDS, num_seeds=st.integers(0, 7))
def test_seeding_does_not_depend_on_the_cut(seed, num_seeds):
    x = rows(seed, num_seeds)
    whole, parts = (AdaptiveDensityEstimator(num_centroids=7, dim=4) for _ in range(2))
    whole.update(x)
    for part in cut(x, seed) if num_seeds else ():
        parts.update(part)
    assert torch.equal(parts.centroids, whole.centroids)
    assert torch.equal(parts.counts, whole.counts)
    assert parts.ready is whole.ready is (num_seeds == 7)


@SETTINGS
@given(seed=SEEDS, num=st.integers(1, 40))
def test_the_order_of_rows_within_an_update_does_not_matter(seed, num):
    options = dict(num_centroids=6, dim=4, revive_after=None)
    a, b = (AdaptiveDensityEstimator(**options) for _ in range(2))
    for estimator in (a, b):
        estimator.update(rows(seed, 6))
    x = rows(seed + 1, num)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num))
    a.update(x)
    b.update(x[order])
    torch.testing.assert_close(a.centroids, b.centroids, rtol=1e-4, atol=1e-5)
    assert torch.equal(a.counts, b.counts)


@SETTINGS
@given(
    seed=SEEDS,
    revive_after=st.sampled_from([None, 1, 2, 5]),
    num_centroids=st.integers(1, 20),
    num=st.integers(1, 120),
    num_bad=st.integers(0, 10),
)
def test_counts_sum_to_the_finite_samples_and_weights_to_one(
    seed, revive_after, num_centroids, num, num_bad
):
    estimator = AdaptiveDensityEstimator(
        num_centroids=num_centroids, dim=4, revive_after=revive_after
    )
    x = rows(seed, num)
    x[np.random.default_rng(seed).integers(num, size=num_bad), 1] = float('inf')
    num_rows = total = 0
    for part in cut(x, seed):
        estimator.update(part)
        num_rows += len(part)
        total += int(part.isfinite().all(dim=1).sum())
        assert int(estimator.counts.sum()) == total
        assert int(estimator.counts.min()) >= 0
        assert estimator.ready is (num_rows >= num_centroids)
        assert estimator.centroids.isfinite().all()
        if total:
            torch.testing.assert_close(
                estimator.weights.double().sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-6
            )


@SETTINGS
@given(seed=SEEDS, num_copies=st.integers(2, 12))
def test_duplicates_come_out_as_common(seed, num_copies):
    estimator = AdaptiveDensityEstimator(num_centroids=8, dim=4)
    x = rows(seed, 30, kinds=30)
    estimator.update(x)
    before = estimator.log_density(x)
    for _ in range(num_copies):
        estimator.update(x[:1].repeat(8, 1))
    after = estimator.log_density(x)
    assert int(after.argmax()) == 0
    # Having been seen so often, it has risen against everything else on average.
    assert (after[0] - after[1:].mean()) > (before[0] - before[1:].mean())


@SETTINGS
@given(
    seed=SEEDS,
    num_before=st.integers(0, 60),
    name=st.sampled_from(['rare', 'common', 'random']),
)
def test_a_restored_pruner_takes_the_same_next_decisions(seed, num_before, name):
    criterion = dict(type=name)
    if name != 'random':
        estimator = dict(num_centroids=10, dim=4, revive_after=3)
        criterion |= dict(exploration=0.3, estimator=estimator)
    original, restored = (BatchPruner(0.3, criterion, seed=seed) for _ in range(2))
    for part in cut(maps(seed, num_before), seed) if num_before else ():
        original(part)
    restored.load_state_dict(original.state_dict())
    for step in range(6):
        features = maps(seed + step + 1, 6)
        expected, actual = original(features), restored(features)
        assert torch.equal(actual.indices, expected.indices)
        assert restored.ready is original.ready
    if name != 'random':
        assert torch.equal(restored.estimator.centroids, original.estimator.centroids)
        assert torch.equal(restored.estimator.counts, original.estimator.counts)
