"""How many images stay in an iteration."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfb_mmseg.core import KeepQuota

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
HUNDREDTHS = st.integers(0, 99).map(lambda n: n / 100)


def decimal(prune_ratio):
    """The fraction that the user wrote, not the nearest binary one."""
    return Fraction(str(prune_ratio))


@SETTINGS
@given(prune_ratio=HUNDREDTHS, batch_size=st.integers(1, 64), start=st.integers(0, 10**6))
def test_the_running_mean_is_exact(prune_ratio, batch_size, start):
    wanted = (1 - decimal(prune_ratio)) * batch_size
    if wanted < 1:
        batch_size = 100
        wanted = (1 - decimal(prune_ratio)) * batch_size
    quota = KeepQuota(prune_ratio)
    kept = [quota.keep(start + t, batch_size) for t in range(100)]
    assert sum(kept) == 100 * wanted
    for end in range(1, 101):
        assert abs(sum(kept[:end]) - end * wanted) < 1
    assert max(kept) - min(kept) <= 1


@SETTINGS
@given(
    prune_ratio=st.floats(0, 1, exclude_max=True),
    batch_size=st.integers(1, 64),
    iteration=st.integers(0, 10**7),
    min_keep=st.integers(1, 8),
)
def test_never_below_min_keep_and_never_above_the_batch(
    prune_ratio, batch_size, iteration, min_keep
):
    kept = KeepQuota(prune_ratio, min_keep=min_keep).keep(iteration, batch_size)
    assert type(kept) is int
    assert min(min_keep, batch_size) <= kept <= batch_size


@SETTINGS
@given(iteration=st.integers(0, 10**7), batch_size=st.integers(1, 64))
def test_nothing_is_pruned_at_ratio_zero(iteration, batch_size):
    assert KeepQuota(0).keep(iteration, batch_size) == batch_size
    assert KeepQuota(0.0).keep(iteration, batch_size) == batch_size


def test_it_is_a_pure_function_of_the_iteration():
    quota = KeepQuota(0.3)
    forwards = [quota.keep(t, 8) for t in range(50)]
    assert [quota.keep(t, 8) for t in reversed(range(50))][::-1] == forwards
    assert [KeepQuota(0.3).keep(t, 8) for t in range(50)] == forwards


@pytest.mark.parametrize(
    'prune_ratio, batch_size, expected',
    [
        (0.5, 8, [4, 4, 4, 4]),
        (0.3, 8, [5, 6, 5, 6, 6]),
        (0.7, 8, [2, 2, 3, 2, 3]),
        (0.5, 1, [1, 1, 1]),
        (0.9, 2, [1, 1, 1]),
    ],
)
def test_known_sequences(prune_ratio, batch_size, expected):
    quota = KeepQuota(prune_ratio)
    assert [quota.keep(t, batch_size) for t in range(len(expected))] == expected


def test_a_million_iterations_do_not_wear_it_out():
    # In floating point 0.1 is not a tenth; the error of a running product shows up here.
    quota = KeepQuota(0.1)
    for t in (10**6, 10**9, 10**12):
        assert sum(quota.keep(t + i, 2) for i in range(10)) == 18
        assert sum(quota.keep(t + i, 11) for i in range(10)) == 99


@pytest.mark.parametrize(
    'option, value',
    [
        ('prune_ratio', 30),
        ('min_keep', 0),
    ],
)
def test_a_bad_option_is_refused_by_name_and_value(option, value):
    with pytest.raises((ValueError, TypeError)) as error:
        KeepQuota(**{'prune_ratio': 0.3, option: value})
    assert option in str(error.value)
    assert str(value) in str(error.value)
