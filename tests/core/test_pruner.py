"""The door to the rest: feature maps in, a selection out, the estimator updated."""

import io

import numpy as np
import pytest
import torch

from pfb_mmseg.core import (
    BatchPruner,
    Candidates,
    Selection,
    pool_features,
)

from . import oracle


def make_pruner(
    prune_ratio=0.5,
    criterion='rare',
    exploration=0.01,
    num_centroids=8,
    dim=4,
    estimator=None,
    **options,
):
    if criterion in ('rare', 'common'):
        estimator = {'num_centroids': num_centroids, 'dim': dim, **(estimator or {})}
        criterion = dict(type=criterion, estimator=estimator, exploration=exploration)
    return BatchPruner(prune_ratio, criterion, **options)


def feature_maps(seed, num=8, channels=12, size=(3, 5)):
    """Positive maps, as after a ReLU, whose images differ in their channel means."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(2.0, size=(num, channels, 1, 1))
    return torch.from_numpy(level * rng.uniform(0.5, 1.5, size=(num, channels, *size))).float()


def ready_pruner(**options):
    pruner = make_pruner(**options)
    for seed in range(1000, 1100):
        if pruner.estimator.ready:
            return pruner
        pruner(feature_maps(seed))
    raise RuntimeError('the estimator never got ready')


def representation(features, dim):
    return oracle.downsample_channels(oracle.pool(features.double().numpy()), dim)


# Against the oracle, whole.


@pytest.mark.parametrize('channels, dim', [(12, 12), (12, 4), (13, 5), (7, 1)])
def test_the_whole_pipeline_follows_the_oracle(channels, dim):
    pruner = make_pruner(
        0.3, num_centroids=12, dim=dim, exploration=0, estimator={'revive_after': None}
    )
    reference = oracle.Estimator(12, dim)
    for seed in range(25):
        features = feature_maps(seed, channels=channels)
        x = representation(features, dim)
        was_ready = reference.ready
        selection = pruner(features)
        kept = selection.indices.tolist()
        if was_ready:
            log_density = reference.log_density(x)
            np.testing.assert_allclose(selection.score.numpy(), log_density, rtol=1e-4, atol=1e-3)
            importance = oracle.eq2_importance(np.exp(log_density), r=0)
            assert len(kept) in (5, 6)
            assert kept == oracle.most_important(importance, len(kept))
        else:
            assert kept == list(range(8))
        reference.update(x[kept])
        np.testing.assert_allclose(
            pruner.estimator.centroids[: len(reference.centroids)], reference.centroids, 1e-4, 1e-5
        )
        counts = pruner.estimator.counts[: len(reference.counts)]
        assert counts.tolist() == reference.counts.tolist()


def test_the_selection_says_what_happened():
    selection = ready_pruner()(feature_maps(0))
    assert isinstance(selection, Selection)
    assert selection.indices.dtype == torch.int64
    assert selection.indices.tolist() == sorted(set(selection.indices.tolist()))
    assert selection.num_candidates == 8
    assert selection.score.shape == (8,)
    assert selection.score.dtype == torch.float32


def test_a_selection_on_a_device_is_fetched_once_for_all_who_ask():
    class OnDevice:
        """A tensor elsewhere; each fetch takes what is left of it away."""

        device = torch.device('cuda')

        def __init__(self, *values):
            self.values = [torch.tensor(values)]

        def cpu(self):
            return self.values.pop()

    selection = Selection(
        3, indices=OnDevice(0, 2), score=OnDevice(1.0, 2.0, 3.0), score_name='loss'
    )
    for _ in range(2):
        found = selection.on_host
        assert found.indices.tolist() == [0, 2]
        assert found.score.tolist() == [1, 2, 3]
        assert (found.num_candidates, found.num_kept, found.score_name) == (3, 2, 'loss')


def test_everything_stays_until_the_estimator_is_ready():
    pruner = make_pruner(0.5, num_centroids=20)
    kept = [len(pruner(feature_maps(seed)).indices) for seed in range(6)]
    assert kept == [8, 8, 8, 4, 4, 4]


def test_the_share_kept_is_exact_over_time():
    pruner = ready_pruner(prune_ratio=0.3)
    kept = [len(pruner(feature_maps(seed)).indices) for seed in range(20)]
    assert set(kept) == {5, 6}
    assert sum(kept[:10]) == sum(kept[10:]) == 56


@pytest.mark.parametrize('min_keep, expected', [(1, 1), (2, 2), (5, 5), (8, 8), (20, 8)])
def test_min_keep_holds(min_keep, expected):
    pruner = ready_pruner(prune_ratio=0.99, min_keep=min_keep)
    assert {len(pruner(feature_maps(seed)).indices) for seed in range(10)} == {expected}


def test_ratio_zero_keeps_everything():
    pruner = make_pruner(0)
    assert all(pruner(feature_maps(s)).indices.tolist() == list(range(8)) for s in range(5))


# Criteria.


def test_rare_and_common_keep_the_two_ends_of_the_ranking():
    rare, common = (ready_pruner(criterion=c, exploration=0) for c in ('rare', 'common'))
    common.load_state_dict(rare.state_dict())
    features = feature_maps(0)
    lowest, highest = rare(features), common(features)
    assert torch.equal(lowest.score, highest.score)
    ranking = lowest.score.argsort().tolist()
    assert lowest.indices.tolist() == sorted(ranking[:4])
    assert highest.indices.tolist() == sorted(ranking[4:])


def test_random_keeps_every_image_equally_often_and_repeats_itself():
    a, b, other = (make_pruner(criterion='random', seed=seed) for seed in (3, 3, 4))
    features, hits, same_as_other = feature_maps(0), np.zeros(8), 0
    for _ in range(300):
        kept = a(features).indices
        assert len(kept) == 4
        assert torch.equal(kept, b(features).indices)
        same_as_other += torch.equal(kept, other(features).indices)
        hits[kept.numpy()] += 1
    assert same_as_other < 30
    assert np.abs(hits - 150).max() < 45


@pytest.mark.parametrize('criterion', ['rare', 'common'])
def test_the_estimate_counts_what_was_retained(criterion):
    pruner = ready_pruner(criterion=criterion)
    before = int(pruner.estimator.counts.sum())
    kept = sum(len(pruner(feature_maps(seed)).indices) for seed in range(7))
    assert int(pruner.estimator.counts.sum()) == before + kept


def test_draws_depend_on_seed_and_iteration_not_on_the_global_generator():
    a, b = (ready_pruner(exploration=1.0, seed=5) for _ in range(2))
    other = ready_pruner(exploration=1.0, seed=6)
    differs = 0
    for seed in range(30):
        torch.manual_seed(seed)
        kept = a(feature_maps(seed)).indices
        torch.manual_seed(seed + 1)
        before = torch.get_rng_state()
        assert torch.equal(kept, b(feature_maps(seed)).indices)
        assert torch.equal(torch.get_rng_state(), before)
        differs += not torch.equal(kept, other(feature_maps(seed)).indices)
    assert differs > 0


@pytest.mark.parametrize('bandwidth', ['silverman', 'scott'])
@pytest.mark.parametrize('seed', range(5))
def test_a_scene_that_was_retained_again_and_again_is_dropped(seed, bandwidth):
    rng = np.random.default_rng(seed)
    pruner = make_pruner(0.5, num_centroids=16, exploration=0, estimator={'bandwidth': bandwidth})
    scene = feature_maps(seed, num=1)
    for step in range(60):
        features = feature_maps(1000 * seed + step + 1)
        brightness = torch.from_numpy(rng.uniform(0.98, 1.02, (4, 1, 1, 1))).float()
        features[rng.choice(8, size=4, replace=False)] = scene * brightness
        pruner.estimator.update(pool_features(features, 4))
    features = feature_maps(1000 * seed + 999)
    features[[0, 2, 3, 7]] = scene
    assert pruner(features).indices.tolist() == [1, 4, 5, 6]


# State.


@pytest.mark.parametrize('through_a_file', [False, True])
@pytest.mark.parametrize('num_batches', [1, 2, 5, 30])
def test_a_restored_pruner_takes_the_same_decisions(num_batches, through_a_file):
    original, restored = (
        make_pruner(0.3, num_centroids=20, exploration=0.5, seed=1) for _ in range(2)
    )
    for seed in range(num_batches):
        original(feature_maps(seed))
    state = original.state_dict()
    if through_a_file:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    restored.load_state_dict(state)
    for seed in range(100, 115):
        expected, actual = original(feature_maps(seed)), restored(feature_maps(seed))
        assert torch.equal(actual.indices, expected.indices)
        torch.testing.assert_close(actual.score, expected.score, rtol=0, atol=0, equal_nan=True)


# Hard inputs.


def test_identical_images_give_a_full_sized_selection():
    pruner = make_pruner(0.5)
    features = feature_maps(0, num=1).repeat(8, 1, 1, 1)
    for _ in range(10):
        selection = pruner(features)
    assert len(selection.indices) == 4
    assert selection.score.isfinite().all()
    assert pruner.estimator.centroids.isfinite().all()


def test_maps_of_zeros_are_no_problem():
    pruner = make_pruner(0.5)
    for _ in range(5):
        selection = pruner(torch.zeros(8, 12, 3, 5))
    assert len(selection.indices) == 4
    assert selection.score.isfinite().all()


def test_one_image_per_batch_is_kept():
    pruner = make_pruner(0.7)
    for seed in range(20):
        selection = pruner(feature_maps(seed, num=1))
        assert selection.indices.tolist() == [0]
    assert pruner.estimator.ready
    # Once it is, an image that stays anyway is not looked at.
    assert int(pruner.estimator.counts.sum()) == 8


def test_more_dimensions_than_channels_are_refused_with_both_numbers():
    pruner = make_pruner(dim=128)
    with pytest.raises(ValueError) as error:
        pruner(feature_maps(0, channels=96))
    assert '128' in str(error.value)
    assert '96' in str(error.value)


@pytest.mark.parametrize('poison', [float('nan'), float('inf'), -float('inf')])
def test_an_image_with_nan_or_inf_stays_out_of_the_centroids_while_seeding(poison):
    pruner = make_pruner(0.5, num_centroids=12)
    kept = []
    for seed in range(3):
        features = feature_maps(seed)
        features[seed, 4, 1, 2] = poison
        kept.append(pruner(features).indices.tolist())
        assert pruner.estimator.centroids.isfinite().all()
    assert [len(k) for k in kept] == [8, 8, 4]
    assert 2 not in kept[2]
    assert int(pruner.estimator.counts.sum()) == 7 + 7 + 4


@pytest.mark.parametrize('exploration', [0, 0.01])
@pytest.mark.parametrize('poison', [float('nan'), float('inf'), -float('inf')])
def test_an_image_with_nan_or_inf_changes_nothing_for_the_others(poison, exploration):
    for seed in range(20):
        clean, dirty = (ready_pruner(exploration=exploration) for _ in range(2))
        features = feature_maps(seed)
        expected = clean(features)
        pruned = [i for i in range(8) if i not in expected.indices.tolist()]
        # The maximum of Eq. 3 is over the finite images, so the poisoned one must not hold it.
        bad = next(i for i in pruned if i != int(expected.score.argmax()))
        features[bad, 3, 0, 0] = poison
        actual = dirty(features)
        assert actual.indices.tolist() == expected.indices.tolist()
        assert actual.score.isnan().nonzero().flatten().tolist() == [bad]
        others = [i for i in range(8) if i != bad]
        torch.testing.assert_close(actual.score[others], expected.score[others])
        torch.testing.assert_close(dirty.estimator.centroids, clean.estimator.centroids)
        assert torch.equal(dirty.estimator.counts, clean.estimator.counts)


def test_nan_images_that_have_to_stay_do_not_enter_the_centroids():
    pruner = ready_pruner()
    before = int(pruner.estimator.counts.sum())
    features = feature_maps(0)
    features[:6, 0] = float('nan')
    selection = pruner(features)
    assert len(selection.indices) == 4
    assert {6, 7} <= set(selection.indices.tolist())
    assert int(selection.score.isnan().sum()) == 6
    assert pruner.estimator.centroids.isfinite().all()
    assert int(pruner.estimator.counts.sum()) == before + 2


@pytest.mark.parametrize('criterion', ['rare', 'common'])
@pytest.mark.parametrize('exploration', [0, 0.01])
def test_images_with_nan_are_the_first_to_go_under_either_criterion(criterion, exploration):
    for seed in range(10):
        pruner = ready_pruner(criterion=criterion, exploration=exploration)
        features = feature_maps(seed)
        features[[0, 3, 5, 6], 0] = float('nan')
        assert pruner(features).indices.tolist() == [1, 2, 4, 7]


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_pooled_in_float32(dtype, autocast):
    pruner = make_pruner(0.5, exploration=0, estimator={'revive_after': None})
    reference = oracle.Estimator(8, 4)
    for seed in range(6):
        # 2000 pixels around 40: their sum does not fit into float16.
        features = (40 * feature_maps(seed, size=(40, 50))).to(dtype)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            selection = pruner(features)
        x = representation(features, 4)
        if seed > 0:
            np.testing.assert_allclose(
                selection.score.numpy(), reference.log_density(x), rtol=1e-4, atol=1e-3
            )
        reference.update(x[selection.indices.tolist()])
    assert selection.score.dtype == torch.float32
    assert pruner.estimator.centroids.dtype == torch.float32


def test_features_that_require_grad_leave_no_graph_behind():
    pruner = ready_pruner()
    for seed in range(3):
        selection = pruner(feature_maps(seed).requires_grad_())
    assert not selection.score.requires_grad
    assert not pruner.estimator.centroids.requires_grad


def test_the_features_are_not_written_to():
    pruner, features = ready_pruner(), feature_maps(0)
    before = features.clone()
    pruner(features)
    assert torch.equal(features, before)


def test_memory_layout_does_not_matter():
    a, b = ready_pruner(), ready_pruner()
    for seed in range(5):
        features = feature_maps(seed)
        strided = features.to(memory_format=torch.channels_last)
        assert torch.equal(a(features).indices, b(strided).indices)


# Bad arguments.


def test_the_defaults_are_the_papers():
    pruner = BatchPruner()
    pruner(torch.rand(8, 256))
    assert pruner.estimator.centroids.shape == (64, 128)


def test_narrow_features_are_taken_as_they_are():
    pruner = BatchPruner()
    pruner(torch.rand(8, 16))
    assert pruner.estimator.centroids.shape == (64, 16)


def test_candidates_are_asked_where_features_are_not_given():
    class Images(Candidates):
        def losses(self):
            return torch.tensor([1.0, 4.0, 3.0, 2.0])

    selection = BatchPruner(0.5, criterion='loss_topk')(Images(4, torch.device('cpu')))
    assert selection.indices.tolist() == [1, 2]


@pytest.mark.parametrize(
    'option, value',
    [
        ('prune_ratio', 1.0),
        ('criterion', 'rarest'),
        ('min_keep', 0),
        ('seed', 1.5),
    ],
)
def test_a_bad_option_is_refused_by_name_and_value(option, value):
    with pytest.raises((ValueError, TypeError), match=f'{option}={value!r}'):
        BatchPruner(**{option: value})
