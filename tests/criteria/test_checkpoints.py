"""Checkpoints: of version 0.1, of other criteria, of the plain class."""

import io

import pytest
import tiny
import torch

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner

OLD = ('centroids', 'counts', 'idle', 'num_seeded', 'num_updates')


def old_state(step=5, num_centroids=6, dim=8, seed=0):
    """What version 0.1 wrote for a pruner."""
    generator = torch.Generator().manual_seed(seed)
    return {
        'step': torch.tensor(step),
        'estimator.centroids': torch.rand(num_centroids, dim, generator=generator),
        'estimator.counts': torch.randint(1, 9, (num_centroids,), generator=generator),
        'estimator.idle': torch.randint(0, 3, (num_centroids,), generator=generator),
        'estimator.num_seeded': torch.tensor(num_centroids),
        'estimator.num_updates': torch.tensor(4),
    }


def old_checkpoint(model, **options):
    """The state of a model as version 0.1 would have written it."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('pfb.')}
    return state | {f'pfb.pruner.{k}': v for k, v in old_state(**options).items()}


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize('criterion', ['rare', 'common'])
def test_a_pruner_of_version_0_1_goes_on(criterion):
    pruner = BatchPruner(0.5, AdaptiveDensityEstimator(6, 8), criterion, exploration=0)
    state = old_state()
    pruner.load_state_dict(through_a_file(state))
    assert pruner.step == 5 and pruner.ready
    estimator = pruner.estimator
    assert torch.equal(estimator.centroids, state['estimator.centroids'])
    assert estimator.counts.tolist() == state['estimator.counts'].tolist()
    # The density is the one of those centroids.
    fresh = AdaptiveDensityEstimator(6, 8)
    fresh.load_state_dict({name: state[f'estimator.{name}'] for name in OLD})
    x = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    expected = fresh.log_density(x)
    selection = pruner(x)
    assert torch.equal(selection.log_density, expected)
    order = expected.argsort(descending=criterion == 'common')
    assert selection.indices.tolist() == sorted(order[:4].tolist())
    assert pruner.step == 6


def test_the_old_state_is_not_written_to():
    state = old_state()
    names = list(state)
    BatchPruner(0.5, AdaptiveDensityEstimator(6, 8)).load_state_dict(state)
    assert list(state) == names


@pytest.mark.parametrize(
    'criterion',
    [
        'rare',
        'common',
        'random',
        'hard',
        'loss_topk',
        'divbs',
        dict(type='rare', estimator=dict(num_centroids=6, dim=8)),
    ],
    ids=str,
)
def test_a_model_of_version_0_1_loads_strictly_whatever_the_criterion(criterion):
    model = tiny.build(dict(criterion=criterion))
    state = old_checkpoint(tiny.plain_twin(tiny.build()), step=5)
    model.load_state_dict(through_a_file(state))
    assert model.pfb.pruner.step == 5
    model.loss(tiny.images(), tiny.samples())
    assert model.pfb.selection.num_kept == 4
    assert model.pfb.pruner.step == 6


def test_an_exit_of_its_own_starts_afresh_from_a_checkpoint_that_has_none():
    model = tiny.build(dict(criterion=dict(type='hard', exit='own', warmup=2)))
    missing, unexpected = model.load_state_dict(old_checkpoint(model), strict=False)
    assert missing and all(name.startswith('pfb.exit.layers.') for name in missing)
    assert not unexpected
    kept = []
    for seed in range(3):
        model.loss(tiny.images(seed=seed), tiny.samples(seed=seed))
        kept.append(model.pfb.selection.num_kept)
    assert kept == [8, 8, 4]


@pytest.mark.parametrize('written_by', ['rare', 'random', 'hard'])
@pytest.mark.parametrize('read_by', ['rare', 'random', 'hard'])
@pytest.mark.filterwarnings('ignore:.*starts afresh')
def test_a_run_goes_on_with_another_criterion_as_the_runner_loads_it(written_by, read_by):
    """Not strictly: what the other criterion knew is left over."""
    old = tiny.build(dict(criterion=written_by))
    for seed in range(3):
        old.loss(tiny.images(seed=seed), tiny.samples(seed=seed))
    new = tiny.build(dict(criterion=read_by))
    missing, _ = new.load_state_dict(through_a_file(old.state_dict()), strict=False)
    assert not missing
    assert new.pfb.pruner.step == old.pfb.pruner.step
    new.loss(tiny.images(), tiny.samples())


@pytest.mark.parametrize('criterion', ['rare', 'random', 'hard', 'divbs'])
@pytest.mark.filterwarnings('ignore:.*starts afresh')
def test_a_checkpoint_of_the_plain_class_loads_strictly(criterion):
    model = tiny.build(dict(criterion=criterion))
    plain = tiny.plain_twin(model)
    model.load_state_dict(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize(
    'criterion',
    ['rare', 'common', 'random', 'hard', dict(type='hard', exit='own', warmup=3), 'divbs'],
    ids=str,
)
@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_a_restored_model_takes_the_same_decisions(criterion, strategy):
    if criterion == 'divbs' and strategy == 'single_pass':
        strategy = 'two_pass'
    options = dict(criterion=criterion, strategy=strategy, prune_ratio=0.3, exploration=0.5)
    original, restored = (tiny.build(options, head=dict(dropout_ratio=0)) for _ in range(2))
    for seed in range(2):
        original.loss(tiny.images(seed=seed), tiny.samples(seed=seed))
    restored.load_state_dict(through_a_file(original.state_dict()))
    for seed in range(2, 6):
        images, samples = tiny.images(seed=seed), tiny.samples(seed=seed)
        expected, found = (one.loss(images, samples) for one in (original, restored))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert torch.equal(original.pfb.selection.indices, restored.pfb.selection.indices)


def test_the_state_is_of_whole_numbers_that_no_average_touches():
    """EMAHook averages buffers of floats, and mixed precision casts them."""
    for criterion in ('rare', 'random', 'hard'):
        pruner = tiny.build(dict(criterion=criterion)).pfb.pruner
        assert not list(pruner.named_buffers())
        assert all(not value.is_floating_point() for value in pruner.state_dict().values())
