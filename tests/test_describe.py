"""The sentence with which a run begins: what is blocked, what scoring costs, what that leaves."""

import re

import pytest
import tiny
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

KEPT = {
    'rare': 'those of lowest density',
    'hard': 'those of highest loss at the exit',
    'random': 'a random part',
    'loss_topk': 'those of highest loss after a forward pass of all',
}


def described(criterion, **options):
    init_default_scope('mmseg')
    model = MODELS.build(tiny.model_cfg(pfb=dict(criterion=criterion, **options)))
    model.pfb.prepare()
    return model.pfb.describe()


def cost(sentence):
    """What scoring takes of a full step, and what is saved of it, in percent."""
    found = re.search(r'costs ([\d.]+)% of a full step.* about (\d+)% of a step is saved', sentence)
    return float(found[1]), int(found[2])


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
@pytest.mark.parametrize('criterion', list(KEPT))
def test_says_where_and_what_is_kept(strategy, criterion):
    if (strategy, criterion) == ('single_pass', 'loss_topk'):
        with pytest.raises(ValueError, match="use strategy='two_pass'"):
            described(criterion, strategy=strategy)
        return
    start, behind = described(criterion, strategy=strategy).split('. ', maxsplit=1)
    assert start == (
        f'PFB blocks 50% of the images behind backbone.layer3 ({strategy}) and keeps '
        f'{KEPT[criterion]}'
    )
    assert re.match(r'\d+% of the forward pass is still to come there', behind)
    # A single pass has nothing to pay for beforehand.
    assert ('is saved' in behind) == (strategy == 'two_pass')


def test_the_shallow_part_costs_less_at_a_smaller_scale_the_whole_network_does_not():
    for criterion in ('rare', 'hard'):
        (whole, saved), (half, more) = (
            cost(described(criterion, score_scale=scale)) for scale in (1.0, 0.5)
        )
        assert whole == pytest.approx(4 * half, abs=0.3) and saved < more < 50
    for scale in (1.0, 0.5):
        assert cost(described('loss_topk', score_scale=scale)) == (33.3, 17)


def test_the_exit_is_paid_for_too():
    assert cost(described('hard'))[0] > cost(described('rare'))[0]


def test_where_no_image_is_scored_all_that_is_blocked_is_saved():
    sentence = described('random')
    assert 'no image is scored, so that about 50% of a step is saved' in sentence
    assert 'costs' not in sentence


@pytest.mark.parametrize(('scale', 'remedy'), [(1.0, 'score_scale=0.5'), (0.5, None)])
@pytest.mark.parametrize('criterion', ['rare', 'hard'])
def test_a_dear_shallow_part_is_told_with_the_remedy(criterion, scale, remedy):
    sentence = described(criterion, block_after='backbone.layer4', score_scale=scale)
    ending = (
        ' is saved' if remedy is None else f', which {remedy} or an earlier block_after would raise'
    )
    assert sentence.endswith(ending)


@pytest.mark.parametrize('criterion', ['random', 'loss_topk'])
def test_no_remedy_is_named_that_would_change_nothing(criterion):
    sentence = described(criterion, block_after='backbone.layer4')
    assert 'score_scale' not in sentence and 'block_after' not in sentence
