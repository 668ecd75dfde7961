"""What the log tells of the selections since it was last written."""

import json

import pytest
import torch

from pfb_mmseg.core import Selection, SelectionStatistics


def selection(scores, kept):
    return Selection(
        len(scores),
        indices=torch.tensor(kept),
        score=torch.tensor(scores),
        score_name='log_density',
    )


STEPS = [
    selection([1.0, 2.0, torch.nan], [0, 2]),
    selection([3.0, 4.0, 5.0], [1]),
    selection([6.0, torch.inf, 0.5], [0, 1]),
]


def test_numbers_and_means_over_finite_scores():
    statistics = SelectionStatistics()
    for step in STEPS:
        statistics.add(step)
    statistics.count_full(5)
    assert statistics.flush() == {
        'kept': 10,
        'candidates': 14,
        'log_density_kept': pytest.approx((1 + 4 + 6) / 3),
        'log_density_dropped': pytest.approx((2 + 3 + 5 + 0.5) / 4),
        'nonfinite': 2,
    }
    assert statistics.flush() == {'kept': 0, 'candidates': 0}  # it starts over


def test_without_scores_there_are_numbers_alone():
    statistics = SelectionStatistics()
    statistics.add(Selection(4, indices=torch.tensor([1, 3])))
    assert statistics.flush() == {'kept': 2, 'candidates': 4}


def test_a_mean_over_no_image_is_left_out():
    statistics = SelectionStatistics()
    statistics.add(selection([1.0, torch.nan], [0]))
    assert statistics.flush() == {
        'kept': 1,
        'candidates': 2,
        'log_density_kept': 1,
        'nonfinite': 1,
    }


def test_they_go_on_where_they_were_saved():
    whole, before, after = (SelectionStatistics() for _ in range(3))
    for step in STEPS[:2]:
        before.add(step)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    after.add(STEPS[2])
    for step in STEPS:
        whole.add(step)
    assert after.flush() == whole.flush()
