"""Eq. 1-3: which samples stay, given their log densities."""

import numpy as np
import pytest
import torch

from pfb_mmseg.core import Selection
from pfb_mmseg.core.selection import explored_log_density, keep_highest

from . import oracle


def generator(seed):
    return torch.Generator().manual_seed(seed)


def choose(log_density, num_keep, exploration=0.01, draws=None):
    """As the paper's criterion does: the rarest stay."""
    return keep_highest(-explored_log_density(log_density, exploration, draws), num_keep)


def random_log_density(seed, num, low=-65.0, high=92.0):
    """Float32 values over the range that those of a real network have."""
    return torch.empty(num).uniform_(low, high, generator=generator(seed))


def overlap(a, b):
    return len(set(a.tolist()) & set(b.tolist())) / len(a)


# Pure ranking.


def test_without_exploration_the_choice_solves_eq_1():
    for seed in range(20):
        log_density = random_log_density(seed, 8, -3, 3)
        importance = oracle.eq2_importance(np.exp(log_density.double().numpy()), r=0)
        for num_keep in range(1, 9):
            chosen = choose(log_density, num_keep, exploration=0)
            assert chosen.tolist() == oracle.eq1_retained(importance, num_keep)


def test_without_exploration_nothing_is_drawn_and_the_generator_stays():
    log_density, draws = random_log_density(0, 64), generator(7)
    before = draws.get_state()
    chosen = choose(log_density, 20, 0.0, draws)
    assert torch.equal(chosen, log_density.argsort()[:20].sort().values)
    assert torch.equal(draws.get_state(), before)


def test_ties_go_to_the_lowest_index():
    importance = torch.tensor([-2.0, -1.0, -1.0, -0.0, -1.0])
    assert keep_highest(importance, 2).tolist() == [1, 3]
    assert keep_highest(importance, 3).tolist() == [1, 2, 3]
    assert keep_highest(torch.zeros(300), 7).tolist() == list(range(7))


def test_infinite_importance_has_its_place_and_nan_comes_last():
    importance = torch.tensor([torch.nan, -torch.inf, 0.0, torch.inf])
    for num_keep, kept in ((1, [3]), (2, [2, 3]), (3, [1, 2, 3])):
        assert keep_highest(importance, num_keep).tolist() == kept


def test_the_choice_is_of_type_int64_and_stays_on_the_device():
    chosen = keep_highest(torch.zeros(4, device='meta'), 3)
    assert (chosen.dtype, chosen.device.type, chosen.shape) == (torch.int64, 'meta', (3,))


def test_one_image_is_always_kept():
    for value in (-1e5, 0.0, 92.0, float('nan')):
        assert choose(torch.tensor([value]), 1, 0.5).tolist() == [0]


# Eq. 2-3, the random term.


@pytest.mark.parametrize('b', [1e-3, 0.01, 0.1, 1.0, 100.0])
def test_exploration_is_eq_2_and_3_with_one_alpha_per_sample(b):
    for seed in range(30):
        num = (8, 16, 64)[seed % 3]
        log_density = random_log_density(seed, num, -8, 8)
        alpha = b * torch.rand(num, generator=generator(seed)).double().numpy()
        for num_keep in (1, num // 3, num - 1):
            chosen = choose(log_density, num_keep, b, generator(seed))
            expected = oracle.density_space_choice(log_density, num_keep, alpha)
            assert chosen.tolist() == expected


def test_two_samples_swap_as_often_as_eq_3_says():
    # f = 1 - gap and 1 with r ~ U(0, b): the order turns when the difference of two uniform
    # draws exceeds gap, with probability (1 - gap / b)^2 / 2.
    b, gap, draws = 0.1, 0.03, generator(0)
    log_density = torch.tensor([1 - gap, 1.0]).log() - 40
    turned = sum(choose(log_density, 1, b, draws).item() for _ in range(4000))
    assert turned / 4000 == pytest.approx((1 - gap / b) ** 2 / 2, abs=0.025)


def test_gaps_beyond_b_keep_their_order():
    log_density = torch.tensor([0.85, 1.0]).log()
    draws = generator(0)
    assert not any(choose(log_density, 1, 0.1, draws).item() for _ in range(500))


@pytest.mark.parametrize('offset', [-10000.0, -1000.0, 1000.0, 10000.0])
def test_the_choice_depends_on_the_ratios_of_densities_only(offset):
    for seed in range(20):
        # At an offset of 10000, float32 would tell apart only what differs by a thousandth.
        log_density = random_log_density(seed, 32, -10, 10).double()
        chosen = choose(log_density, 10, 0.1, generator(seed))
        shifted = choose(log_density + offset, 10, 0.1, generator(seed))
        assert torch.equal(chosen, shifted)


def test_more_exploration_agrees_less_with_the_pure_ranking():
    agreement = []
    for b in (0, 1e-3, 0.01, 0.1, 1.0, 1e3):
        overlaps = []
        for seed in range(200):
            log_density = 4 * torch.randn(16, generator=generator(1000 + seed))
            ranking = choose(log_density, 8, exploration=0)
            overlaps.append(overlap(ranking, choose(log_density, 8, b, generator(seed))))
        agreement.append(np.mean(overlaps))
    assert agreement[0] == 1
    assert all(more > less for more, less in zip(agreement, agreement[1:], strict=False))
    assert agreement[-1] == pytest.approx(0.5, abs=0.05)


def test_the_same_generator_gives_the_same_choice_and_goes_on():
    log_density, a, b = random_log_density(0, 64, -2, 2), generator(3), generator(3)
    first = choose(log_density, 20, 0.5, a)
    assert torch.equal(first, choose(log_density, 20, 0.5, b))
    assert not torch.equal(first, choose(log_density, 20, 0.5, a))


@pytest.mark.parametrize('exploration', [0.0, 0.01])
def test_non_finite_entries_come_last_and_do_not_reach_the_others(exploration):
    for seed in range(20):
        clean = random_log_density(seed, 16, -4, 4)
        # The most common of the clean ones must stay: it is the maximum of Eq. 3.
        dirty_at = [int(i) for i in clean.argsort()[[2, 5, 9]]]
        dirty = clean.clone()
        dirty[dirty_at] = float('nan')
        kept = [i for i in range(16) if i not in dirty_at]
        full_order = [choose(clean, k, exploration, generator(seed)).tolist() for k in range(1, 17)]
        for k in range(1, 14):
            chosen = choose(dirty, k, exploration, generator(seed)).tolist()
            # The smallest clean choice that holds k of the clean images is the one expected.
            expected = next(
                rest
                for rest in ([i for i in order if i in kept] for order in full_order)
                if len(rest) == k
            )
            assert chosen == expected
        assert set(kept) <= set(choose(dirty, 14, exploration).tolist())


def test_a_batch_of_nothing_but_nan_still_gives_distinct_indices():
    chosen = choose(torch.full((6,), float('nan')), 4, 0.01)
    assert len(set(chosen.tolist())) == 4


def test_equal_densities_are_drawn_evenly():
    draws, hits = generator(0), torch.zeros(8)
    for _ in range(800):
        hits[choose(torch.full((8,), -40.0), 4, 0.01, draws)] += 1
    assert (hits - 400).abs().max() < 70


# Bad arguments.


@pytest.mark.parametrize('shape', [(), (2, 4)])
def test_importance_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r'\(N,\), got \(' + ', '.join(map(str, shape))):
        keep_highest(torch.zeros(shape), 1)


# The outcome.


def test_a_selection_says_who_stays_and_takes_them():
    samples = ['a', 'b', 'c', 'd']
    selection = Selection(4, indices=torch.tensor([1, 3]), samples=samples)
    assert (selection.num_candidates, selection.num_kept) == (4, 2)
    assert selection.kept.tolist() == [False, True, False, True]
    assert selection.take(torch.arange(4)).tolist() == [1, 3]
    assert selection.samples is samples
    assert selection.on_host is selection
    assert selection.score is None and selection.score_name is None
