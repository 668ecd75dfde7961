"""How a criterion is named, and what is said of a name or an option that does not exist."""

import pytest
import tiny

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner
from pfb_mmseg.core.criteria import Common, Rare


def test_all_options_of_a_criterion_stand_with_it():
    options = dict(type='common', exploration=0.3, estimator=dict(num_centroids=5, dim=4))
    given = dict(options)
    for pruner in (BatchPruner(criterion=options), tiny.build(dict(criterion=options)).pfb.pruner):
        assert type(pruner.criterion) is Common and pruner.criterion.exploration == 0.3
        assert (pruner.estimator.num_centroids, pruner.estimator.dim) == (5, 4)
    assert options == given, 'the dict was written to'


def test_a_criterion_may_be_given_as_it_is():
    criterion = Rare(AdaptiveDensityEstimator(num_centroids=3, dim=2))
    pruner = BatchPruner(criterion=criterion)
    assert pruner.criterion is criterion
    assert pruner.estimator is criterion.estimator


@pytest.mark.parametrize(
    ('criterion', 'sentence'),
    [
        ('hrad', r"criterion='hrad': expected one of .*'hard'.*did you mean 'hard'"),
        (dict(type='lossy_topk'), "criterion='lossy_topk'.*did you mean 'loss_topk'"),
        (dict(exploration=0.1), 'criterion=None: expected one of'),
        (None, 'criterion=None: expected one of'),
        (['hard'], r"criterion=\['hard'\]: expected one of"),
        (dict(type='hard', skp=0.1), "criterion 'hard' has no option 'skp'.*did you mean 'skip'"),
        (dict(type='random', exploration=0), "criterion 'random' has no option 'exploration'"),
        (dict(type='rare', skip=0.1), "criterion 'rare' has no option 'skip'"),
        (dict(type='rare', estimator=dict(num_centroid=3)), "did you mean 'num_centroids'"),
        (dict(type='rare', estimator=3), 'estimator=3: expected .*a dict.*got int'),
        (dict(type='rare', exploration=-0.1), r'exploration=-0.1: expected a number in \[0, inf\)'),
        (dict(type='hard', skip='most'), "skip='most': expected a number"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_told(criterion, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        BatchPruner(criterion=criterion)


@pytest.mark.parametrize(
    'options',
    [dict(skip=0.1), dict(exploration=0.5), dict(estimator=dict(num_centroids=4)), dict(pool=7)],
    ids=str,
)
def test_nothing_of_a_criterion_stands_beside_it(options):
    with pytest.raises(ValueError, match=f"pfb has no option '{[*options][0]}'"):
        tiny.build(options)
