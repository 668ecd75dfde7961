"""Eq. 1-3: which samples stay, given their log densities."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from pfb_mmseg.core import select_rare

from . import oracle

SPACES = ('density', 'log_density')


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_log_density(seed, num, low=-65.0, high=92.0):
    """Float32 values over the range that facts of a real network showed."""
    return torch.empty(num).uniform_(low, high, generator=generator(seed))


def overlap(a, b):
    return len(set(a.tolist()) & set(b.tolist())) / len(a)


# Pure ranking.


@pytest.mark.parametrize('space', SPACES)
def test_without_exploration_the_choice_solves_eq_1(space):
    for seed in range(20):
        log_density = random_log_density(seed, 8, -3, 3)
        importance = oracle.eq2_importance(np.exp(log_density.double().numpy()), r=0)
        for num_keep in range(1, 9):
            chosen = select_rare(log_density, num_keep, exploration=0, exploration_space=space)
            assert chosen.tolist() == oracle.eq1_retained(importance, num_keep)


@pytest.mark.parametrize('space', SPACES)
def test_without_exploration_nothing_is_drawn_and_the_generator_stays(space):
    log_density, draws = random_log_density(0, 64), generator(7)
    before = draws.get_state()
    chosen = select_rare(log_density, 20, 0.0, space, draws)
    assert torch.equal(chosen, log_density.argsort()[:20].sort().values)
    assert torch.equal(draws.get_state(), before)


def test_ties_go_to_the_lowest_index():
    log_density = torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0])
    assert select_rare(log_density, 2, exploration=0).tolist() == [1, 3]
    assert select_rare(log_density, 3, exploration=0).tolist() == [1, 2, 3]
    assert select_rare(torch.zeros(300), 7, exploration=0).tolist() == list(range(7))


def test_the_choice_is_of_type_int64_and_stays_on_the_device():
    log_density = torch.zeros(4)
    chosen = select_rare(log_density, 4)
    assert chosen.dtype == torch.int64
    assert chosen.device == log_density.device
    assert chosen.tolist() == [0, 1, 2, 3]


def test_one_image_is_always_kept():
    for space in SPACES:
        for value in (-1e5, 0.0, 92.0, float('nan')):
            assert select_rare(torch.tensor([value]), 1, 0.5, space).tolist() == [0]


# Eq. 2-3 in density space.


@pytest.mark.parametrize('b', [1e-3, 0.01, 0.1, 1.0, 100.0])
def test_density_space_is_eq_2_and_3_with_one_alpha_per_sample(b):
    for seed in range(30):
        num = (8, 16, 64)[seed % 3]
        log_density = random_log_density(seed, num, -8, 8)
        alpha = b * torch.rand(num, generator=generator(seed)).double().numpy()
        for num_keep in (1, num // 3, num - 1):
            chosen = select_rare(log_density, num_keep, b, 'density', generator(seed))
            expected = oracle.density_space_choice(log_density, num_keep, alpha)
            assert chosen.tolist() == expected


def test_density_space_swaps_two_samples_as_often_as_eq_3_says():
    # f = 1 - gap and 1 with r ~ U(0, b): the order turns when the difference of two uniform
    # draws exceeds gap, with probability (1 - gap / b)^2 / 2.
    b, gap, draws = 0.1, 0.03, generator(0)
    log_density = torch.tensor([1 - gap, 1.0]).log() - 40
    turned = sum(select_rare(log_density, 1, b, 'density', draws).item() for _ in range(4000))
    assert turned / 4000 == pytest.approx((1 - gap / b) ** 2 / 2, abs=0.025)


def test_density_space_never_touches_the_order_of_gaps_beyond_b():
    log_density = torch.tensor([0.85, 1.0]).log()
    draws = generator(0)
    assert not any(select_rare(log_density, 1, 0.1, 'density', draws).item() for _ in range(500))


@pytest.mark.parametrize('offset', [-10000.0, -1000.0, 1000.0, 10000.0])
def test_density_space_depends_on_the_ratios_of_densities_only(offset):
    for seed in range(20):
        # At an offset of 10000, float32 would tell apart only what differs by a thousandth.
        log_density = random_log_density(seed, 32, -10, 10).double()
        chosen = select_rare(log_density, 10, 0.1, 'density', generator(seed))
        shifted = select_rare(log_density + offset, 10, 0.1, 'density', generator(seed))
        assert torch.equal(chosen, shifted)


def test_more_exploration_agrees_less_with_the_pure_ranking():
    agreement = []
    for b in (0, 1e-3, 0.01, 0.1, 1.0, 1e3):
        overlaps = []
        for seed in range(200):
            log_density = 4 * torch.randn(16, generator=generator(1000 + seed))
            ranking = select_rare(log_density, 8, exploration=0)
            chosen = select_rare(log_density, 8, b, 'density', generator(seed))
            overlaps.append(overlap(ranking, chosen))
        agreement.append(np.mean(overlaps))
    assert agreement[0] == 1
    assert all(more > less for more, less in zip(agreement, agreement[1:], strict=False))
    assert agreement[-1] == pytest.approx(0.5, abs=0.05)


# The released code's noise in log space.


@pytest.mark.parametrize('b', [1e-3, 0.01, 0.1, 1.0])
def test_log_space_adds_gaussian_noise_of_b_times_the_largest_magnitude(b):
    for seed in range(30):
        num = (8, 16, 64)[seed % 3]
        log_density = random_log_density(seed, num)
        noise = torch.randn(num, generator=generator(seed)).double().numpy()
        for num_keep in (1, num // 3, num - 1):
            chosen = select_rare(log_density, num_keep, b, 'log_density', generator(seed))
            assert chosen.tolist() == oracle.log_space_choice(log_density, num_keep, b, noise)


def test_log_space_swaps_two_samples_as_often_as_the_normal_law_says():
    b, log_density, draws = 0.1, torch.tensor([-50.0, -45.0]), generator(0)
    turned = sum(select_rare(log_density, 1, b, 'log_density', draws).item() for _ in range(4000))
    expected = norm.sf(5 / (b * 50 * np.sqrt(2)))
    assert turned / 4000 == pytest.approx(expected, abs=0.025)


# Both.


@pytest.mark.parametrize('space', SPACES)
def test_the_same_generator_gives_the_same_choice_and_goes_on(space):
    log_density, a, b = random_log_density(0, 64, -2, 2), generator(3), generator(3)
    first = select_rare(log_density, 20, 0.5, space, a)
    assert torch.equal(first, select_rare(log_density, 20, 0.5, space, b))
    assert not torch.equal(first, select_rare(log_density, 20, 0.5, space, a))


@pytest.mark.parametrize('exploration', [0.0, 0.01])
@pytest.mark.parametrize('space', SPACES)
def test_non_finite_entries_come_last_and_do_not_reach_the_others(space, exploration):
    for seed in range(20):
        clean = random_log_density(seed, 16, -4, 4)
        # The most common of the clean ones must stay: it is the maximum of Eq. 3.
        dirty_at = [int(i) for i in clean.argsort()[[2, 5, 9]]]
        dirty = clean.clone()
        dirty[dirty_at] = float('nan')
        kept = [i for i in range(16) if i not in dirty_at]
        full_order = [
            select_rare(clean, k, exploration, space, generator(seed)).tolist()
            for k in range(1, 17)
        ]
        for k in range(1, 14):
            chosen = select_rare(dirty, k, exploration, space, generator(seed)).tolist()
            # The smallest clean choice that holds k of the clean images is the one expected.
            expected = next(
                rest
                for rest in ([i for i in order if i in kept] for order in full_order)
                if len(rest) == k
            )
            assert chosen == expected
        assert set(kept) <= set(select_rare(dirty, 14, exploration, space).tolist())


@pytest.mark.parametrize('space', SPACES)
def test_a_batch_of_nothing_but_nan_still_gives_distinct_indices(space):
    chosen = select_rare(torch.full((6,), float('nan')), 4, 0.01, space)
    assert len(set(chosen.tolist())) == 4


@pytest.mark.parametrize('space', SPACES)
def test_equal_densities_are_drawn_evenly(space):
    draws, hits = generator(0), torch.zeros(8)
    for _ in range(800):
        hits[select_rare(torch.full((8,), -40.0), 4, 0.01, space, draws)] += 1
    assert (hits - 400).abs().max() < 70


# Bad arguments.


@pytest.mark.parametrize(
    'option, value',
    [
        ('num_keep', 0),
        ('num_keep', -1),
        ('num_keep', 9),
        ('num_keep', 2.5),
        ('exploration', -0.01),
        ('exploration', float('nan')),
        ('exploration', float('inf')),
        ('exploration', 'little'),
        ('exploration_space', 'log'),
        ('exploration_space', None),
    ],
)
def test_a_bad_option_is_refused_by_name_and_value(option, value):
    with pytest.raises((ValueError, TypeError)) as error:
        select_rare(torch.zeros(8), **{'num_keep': 4, option: value})
    assert option in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize('shape', [(), (2, 4)])
def test_log_density_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError) as error:
        select_rare(torch.zeros(shape), 1)
    assert str(shape) in str(error.value)
