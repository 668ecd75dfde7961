"""A decision is taken, the images that stay go through their forward pass, then it is committed."""

import pytest
import tiny
import torch

from pfb_mmseg.core import (
    CRITERIA,
    BatchPruner,
    Candidates,
    Criterion,
    FeatureCandidates,
)
from pfb_mmseg.models.description import describe


def pruner(criterion='rare', prune_ratio=0.5):
    if criterion == 'rare':
        criterion = dict(type='rare', estimator=dict(num_centroids=6, dim=4))
    chosen = BatchPruner(prune_ratio, criterion)
    while not chosen.ready:
        chosen(rows(seed=100))
    return chosen


def rows(num=8, seed=0):
    return torch.rand(num, 4, generator=torch.Generator().manual_seed(seed))


def candidates(num=8, seed=0):
    return FeatureCandidates(rows(num, seed))


def test_nothing_is_learnt_before_the_commit():
    chosen = pruner()
    step, counts = chosen.step, chosen.estimator.counts.clone()
    decision = chosen.select(candidates())
    assert chosen.step == step
    assert torch.equal(chosen.estimator.counts, counts)
    decision.commit()
    assert chosen.step == step + 1
    assert int(chosen.estimator.counts.sum() - counts.sum()) == 4


@pytest.mark.parametrize('criterion', ['rare', 'random'])
def test_the_next_selection_asks_for_the_commit_of_the_last(criterion):
    chosen = pruner(criterion)
    step = chosen.step
    chosen.select(candidates())
    with pytest.raises(RuntimeError, match=rf'iteration {step} was never committed.*commit\(\)'):
        chosen.select(candidates(seed=1))


@pytest.mark.parametrize('num', [1, 8], ids=['every image stays', 'half of them'])
def test_a_second_commit_is_an_error_and_learns_nothing(num):
    chosen = pruner()
    decision = chosen.select(candidates(num))
    decision.commit()
    counts = chosen.estimator.counts.clone()
    with pytest.raises(RuntimeError, match='committed or discarded before'):
        decision.commit()
    assert torch.equal(chosen.estimator.counts, counts)


def test_a_decision_of_the_past_cannot_be_committed_in_place_of_the_present_one():
    chosen = pruner()
    past = chosen.select(candidates())
    past.commit()
    present = chosen.select(candidates(seed=1))
    with pytest.raises(RuntimeError, match='committed or discarded before'):
        past.commit()
    present.commit()


def test_a_discarded_decision_is_as_if_it_had_never_been_made():
    chosen, other = pruner(), pruner()
    failed = chosen.select(candidates(seed=1))
    chosen.discard()
    with pytest.raises(RuntimeError, match='committed or discarded before'):
        failed.commit()
    for seed in range(3):
        assert torch.equal(chosen(rows(seed=seed)).indices, other(rows(seed=seed)).indices)
    for name, value in other.estimator.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(chosen.estimator.state_dict()[name], value)


def test_the_context_manager_commits_itself():
    chosen = pruner()
    step = chosen.step
    with chosen.select(candidates()) as decision:
        assert len(decision.take(rows())) == decision.selection.num_kept == 4
    assert chosen.step == step + 1


def test_the_context_manager_discards_where_the_step_fails():
    chosen = pruner()
    step, counts = chosen.step, chosen.estimator.counts.clone()
    with pytest.raises(ZeroDivisionError), chosen.select(candidates()):
        _ = 1 / 0
    assert chosen.step == step
    assert torch.equal(chosen.estimator.counts, counts)
    chosen(rows())


def test_images_that_all_stay_are_not_looked_at():
    class Refuses(Candidates):
        """Tells nothing: whoever asks gets an error."""

    chosen = pruner(prune_ratio=0)
    images = torch.rand(8, 3)
    with chosen.select(Refuses(8, torch.device('cpu'))) as decision:
        assert not decision.looked and decision.unchanged
        assert decision.take(images) is images
    assert chosen.step == 1
    with pytest.raises(TypeError, match=r'Refuses tells no features\(\)'):
        pruner().select(Refuses(8, torch.device('cpu')))


def test_a_criterion_need_not_learn():
    class Quiet(Criterion):
        def observe(self, candidates):
            return candidates.features()[:, 0]

    chosen = BatchPruner(0.5, criterion=Quiet())
    features = rows()
    expected = features[:, 0].argsort()[4:].sort().values
    assert torch.equal(chosen(features).indices, expected)


def test_a_step_that_fails_in_the_model_is_forgotten_by_the_next(monkeypatch):
    model, twin = tiny.build(), tiny.build()
    images, samples = tiny.images(), tiny.samples()
    step = model.pfb.pruner.step

    def fail(*args):
        raise RuntimeError('out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(model.decode_head, 'loss', fail)
        with pytest.raises(RuntimeError, match='out of memory'):
            model.loss(images, samples)
    assert model.pfb.pruner.step == step
    for one in (model, twin):
        one.loss(images, samples)
    assert torch.equal(model.pfb.selection.indices, twin.pfb.selection.indices)
    assert torch.equal(model.pfb.estimator.centroids, twin.pfb.estimator.centroids)


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_from_a_failed_step_an_exit_of_its_own_learns_nothing(strategy, monkeypatch):
    model = tiny.build(dict(strategy=strategy, criterion='hard', exit='own'))
    images, samples = tiny.images(), tiny.samples()
    before = model.pfb.exit.pack().clone()
    with monkeypatch.context() as patch:
        patch.setattr(model.decode_head, 'loss', lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.loss(images, samples)
    model.pfb.pruning = False
    assert 'exit.loss_ce' not in model.loss(images, samples)
    assert torch.equal(model.pfb.exit.pack(), before)


class TestOwnCriterion:
    """A function, a class with an estimate of its own, and what they may ask of the images."""

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    def test_a_function_of_the_candidates_will_do(self, strategy):
        def brightest(candidates):
            return candidates.images.mean(dim=(1, 2, 3))

        model = tiny.build(dict(criterion=brightest, strategy=strategy))
        images = tiny.images()
        model.loss(images, tiny.samples())
        expected = images.mean(dim=(1, 2, 3))
        selection = model.pfb.selection
        assert selection.indices.tolist() == sorted(expected.argsort()[4:].tolist())
        assert selection.score_name == 'score'
        torch.testing.assert_close(selection.score, expected)
        assert 'those of highest brightest' in describe(model.pfb)

    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    def test_it_may_ask_for_features_and_may_teach(self, strategy):
        def loudest(candidates):
            return candidates.features().norm(dim=1)

        model = tiny.build(dict(criterion=loudest, exit_loss_weight=0.5, strategy=strategy))
        losses = model.loss(tiny.images(), tiny.samples())
        score = model.pfb.selection.score
        assert model.pfb.selection.indices.tolist() == sorted(score.argsort()[4:].tolist())
        assert losses['exit.loss_ce'].requires_grad

    def test_with_a_function_by_name(self):
        name = 'test_protocol_first'
        CRITERIA.register_module(name)(lambda candidates: -torch.arange(candidates.num).float())
        try:
            model = tiny.build(dict(criterion=name))
            model.loss(tiny.images(), tiny.samples())
            assert model.pfb.selection.indices.tolist() == [0, 1, 2, 3]
            with pytest.raises(ValueError, match=f"criterion '{name}' has no option 'skip'"):
                BatchPruner(criterion=dict(type=name, skip=0.1))
        finally:
            CRITERIA._known.pop(name)

    def test_losses_that_nobody_knows_are_refused_by_name(self):
        def unknown(candidates):
            return candidates.exit_losses()

        with pytest.raises(TypeError, match="no early exit: set .*scoring_pass to 'exit'"):
            tiny.build(dict(criterion=unknown)).loss(tiny.images(), tiny.samples())
