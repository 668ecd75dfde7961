"""The sentence with which a run begins: what is blocked, what looking costs, what that leaves."""

import re

import pytest
import tiny
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from pfb_mmseg.models.description import describe


def described(criterion, **options):
    init_default_scope('mmseg')
    model = MODELS.build(tiny.model_cfg(pfb=dict(criterion=criterion, **options)))
    model.pfb.prepare()
    return describe(model.pfb)


def percents(sentence):
    """What looking takes of a full step, None for nothing; and what is saved of it."""
    costs = re.search(r'costs ([\d.]+)% of a full step', sentence)
    saved = re.search(r'about (\d+)% of a step is saved', sentence)
    return costs and float(costs[1]), int(saved[1])


@pytest.mark.parametrize(
    ('criterion', 'options', 'strategy'),
    [
        ('rare', {}, 'two_pass'),
        ('random', {}, 'two_pass'),
        ('hard', {}, 'single_pass'),
        ('hard', dict(exit_loss_weight=0), 'two_pass'),
        ('rare', dict(exit_loss_weight=0.4), 'single_pass'),
        ('hard', dict(score_scale=0.5), 'two_pass'),
        ('loss_topk', dict(exit_loss_weight=0.4), 'two_pass'),
        ('rare', dict(strategy='single_pass'), 'single_pass'),
        ('hard', dict(strategy='two_pass'), 'two_pass'),
    ],
    ids=str,
)
def test_names_the_place_the_strategy_and_the_weight(criterion, options, strategy):
    sentence = described(criterion, **options)
    assert f'blocks 50% of the images behind backbone.layer3 ({strategy})' in sentence
    weight = options.get('exit_loss_weight', 1 if criterion == 'hard' else 0)
    assert (f'the auxiliary head over all images trains the part in front with weight {weight:g}'
            in sentence) == bool(weight)  # fmt: skip


def test_the_shallow_part_costs_less_at_a_smaller_scale_the_whole_network_does_not():
    for options in (dict(criterion='rare'), dict(criterion='hard', exit_loss_weight=0)):
        (whole, saved), (half, more) = (
            percents(described(**options, score_scale=scale)) for scale in (1.0, 0.5)
        )
        assert whole == pytest.approx(4 * half, abs=0.3) and saved < more < 50
    for scale in (1.0, 0.5):
        assert percents(described('loss_topk', score_scale=scale)) == (33.3, 17)


def test_the_exit_is_paid_for_and_so_is_the_way_back_where_it_teaches():
    rare, hard, taught = (
        percents(described(criterion, strategy='two_pass', exit_loss_weight=weight))[0]
        for criterion, weight in (('rare', 0), ('hard', 0), ('hard', 1))
    )
    assert hard > rare
    assert taught == pytest.approx(3 * hard, abs=0.2)


def test_a_single_pass_saves_what_lies_behind_for_the_images_that_stop():
    sentence = described('hard')
    behind = int(re.search(r'(\d+)% of the forward pass is still to come', sentence)[1])
    costs, saved = percents(sentence)
    assert costs is None and saved == pytest.approx(behind / 2, abs=1)


def test_where_no_image_is_scored_all_that_is_blocked_is_saved():
    assert percents(described('random')) == (None, 50)


@pytest.mark.parametrize(
    ('criterion', 'remedy'), [('rare', True), ('random', False), ('loss_topk', False)]
)
def test_a_dear_shallow_part_is_told_with_a_remedy_where_there_is_one(criterion, remedy):
    sentence = described(criterion, block_after='backbone.layer4')
    assert ('score_scale=0.5' in sentence and 'block_after' in sentence) == remedy
