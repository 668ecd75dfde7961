"""How a criterion is named, and what is said of a name or an option that does not exist."""

import pytest
import tiny

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner
from pfb_mmseg.core.criteria import Common, Hard, Random, Rare


@pytest.mark.parametrize(
    'options',
    [
        dict(criterion='rare', exploration=0.3, exploration_space='log_density'),
        dict(criterion=dict(type='rare', exploration=0.3, exploration_space='log_density')),
        dict(criterion=dict(type='rare', exploration=0.3), exploration_space='log_density'),
        # What the criterion is given itself counts.
        dict(
            criterion=dict(type='rare', exploration=0.3, exploration_space='log_density'),
            exploration=0.7,
            exploration_space='density',
        ),
    ],
    ids=str,
)
def test_options_stand_with_the_criterion_or_beside_it(options):
    for criterion in (BatchPruner(**options).criterion, tiny.build(options).pfb.pruner.criterion):
        assert type(criterion) is Rare
        assert (criterion.exploration, criterion.exploration_space) == (0.3, 'log_density')


@pytest.mark.parametrize(
    'options',
    [
        dict(estimator=dict(num_centroids=5, dim=4)),
        dict(criterion=dict(type='common', estimator=dict(num_centroids=5, dim=4))),
        dict(
            criterion=dict(type='common', estimator=dict(num_centroids=5, dim=4)),
            estimator=dict(num_centroids=9),
        ),
    ],
    ids=str,
)
def test_the_estimator_stands_with_the_criterion_or_beside_it(options):
    options = {'criterion': 'common', **options}
    estimator = tiny.build(options).pfb.estimator
    assert estimator.centroids.shape == (5, 4)
    estimator = BatchPruner(**options).estimator
    assert (estimator.num_centroids, estimator.dim) == (5, 4)


def test_a_criterion_may_be_given_as_it_is():
    criterion = Rare(AdaptiveDensityEstimator(num_centroids=3, dim=2))
    pruner = BatchPruner(criterion=criterion)
    assert pruner.criterion is criterion
    assert pruner.estimator is criterion.estimator


@pytest.mark.parametrize(('name', 'kind'), [('random', Random), ('hard', Hard)])
def test_options_of_another_criterion_do_no_harm(name, kind):
    """A user tries criteria by changing one word."""
    model = tiny.build(dict(criterion=name, exploration=0.5, estimator=dict(num_centroids=4)))
    assert type(model.pfb.pruner.criterion) is kind
    assert model.pfb.estimator is None
    model.loss(tiny.images(), tiny.samples())
    assert model.pfb.selection.num_kept == 4


def test_the_dict_is_not_written_to():
    criterion = dict(type='rare', estimator=dict(num_centroids=4))
    tiny.build(dict(criterion=criterion))
    assert criterion == dict(type='rare', estimator=dict(num_centroids=4))


@pytest.mark.parametrize(
    ('criterion', 'sentence'),
    [
        ('hrad', r"criterion='hrad': expected one of .*'hard'.*did you mean 'hard'"),
        (dict(type='lossy_topk'), "criterion='lossy_topk'.*did you mean 'loss_topk'"),
        (dict(exploration=0.1), 'criterion=None: expected one of'),
        ({}, 'criterion=None: expected one of'),
        (None, 'criterion=None: expected one of'),
        (3, 'criterion=3: expected one of'),
        (['hard'], r"criterion=\['hard'\]: expected one of"),
        (Common, 'criterion=.*Common.*: expected one of'),
        (dict(type='hard', skp=0.1), "criterion 'hard' has no option 'skp'.*did you mean 'skip'"),
        (dict(type='random', exploration=0), "criterion 'random' has no option 'exploration'"),
        (dict(type='rare', skip=0.1), "criterion 'rare' has no option 'skip'"),
        (dict(type='rare', estimator=dict(num_centroid=3)), "did you mean 'num_centroids'"),
        (dict(type='rare', estimator=3), 'estimator=3: expected .*a dict.*got int'),
        (dict(type='hard', skip=1.0), r'skip=1.0: expected a number in \[0, 1\)'),
        (dict(type='hard', skip='most'), "skip='most': expected a number"),
        (dict(type='hard', warmup=-1), 'warmup=-1: expected an integer >= 0'),
    ],
    ids=str,
)
def test_what_does_not_exist_is_told_where_the_model_is_built(criterion, sentence):
    for build in (
        lambda: BatchPruner(criterion=criterion),
        lambda: tiny.build(dict(criterion=criterion)),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            build()


@pytest.mark.parametrize(
    ('criterion', 'sentence'),
    [
        (dict(type='hard', exit='mine'), "exit='mine': expected one of 'auxiliary', 'own'"),
        (dict(type='hard', pool=0), 'pool=0: expected an integer >= 1'),
        (dict(type='hard', exit='own', channels=0), 'channels=0: expected an integer >= 1'),
        (dict(type='hard', exit='own', in_channels=1.5), 'in_channels=1.5: expected an integer'),
    ],
    ids=str,
)
def test_options_of_the_exit_are_checked_where_the_model_is_built(criterion, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        tiny.build(dict(criterion=criterion))


def test_a_misspelt_option_beside_the_criterion_is_told():
    with pytest.raises(ValueError, match="no option 'explorration'.*did you mean 'exploration'"):
        BatchPruner(explorration=0.1)
    with pytest.raises(ValueError, match="no option 'explorration'.*did you mean 'exploration'"):
        tiny.build(dict(explorration=0.1))
    with pytest.raises(ValueError, match="no option 'warm_up'.*did you mean 'warmup'"):
        BatchPruner(warm_up=3)


@pytest.mark.parametrize('name', ['loss_topk', 'divbs'])
def test_what_needs_the_whole_network_is_refused_in_a_single_pass(name):
    with pytest.raises(ValueError, match=f"criterion='{name}'.*use strategy='two_pass'"):
        tiny.build(dict(criterion=name, strategy='single_pass'))
