"""Checkpoints: of other criteria, of other exits, of the plain class."""

import io

import pytest
import tiny
import torch


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_an_exit_of_its_own_starts_afresh_from_a_checkpoint_that_has_none():
    model = tiny.build(dict(criterion='hard', exit='own'))
    first = [weight.clone() for weight in model.pfb.exit.layers.parameters()]
    model.load_state_dict(through_a_file(tiny.build(dict(criterion='hard')).state_dict()))
    for weight, before in zip(model.pfb.exit.layers.parameters(), first, strict=True):
        assert torch.equal(weight, before)
    model.loss(tiny.images(), tiny.samples())
    assert model.pfb.selection.num_kept == 8


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
    ['rare', 'random', 'hard', 'own', 'divbs'],
)
@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_a_restored_model_takes_the_same_decisions(criterion, strategy):
    options = dict(criterion=criterion, strategy=strategy, prune_ratio=0.3)
    if criterion == 'own':
        options |= dict(criterion='hard', exit='own')
    elif criterion == 'rare':
        options['criterion'] = tiny.RARE | dict(exploration=0.5)
    elif criterion == 'divbs':
        options['strategy'] = 'two_pass'
    original, restored = (tiny.build(options, head=dict(dropout_ratio=0)) for _ in range(2))
    num_before = 11 if criterion == 'own' else 2
    for seed in range(num_before):
        original.loss(tiny.images(size=32, seed=seed), tiny.samples(size=32, seed=seed))
    restored.load_state_dict(through_a_file(original.state_dict()))
    for seed in range(num_before, num_before + 3):
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
