"""Intervals hold what they claim, by simulation and against the definitions they come from."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from stabkit.analyze.intervals import ENOUGH, paired_test, share_test, unpaired_test


def test_share_of_nothing_is_unknown() -> None:
    assert all(map(math.isnan, share_test(0, 0)[0]))


@pytest.mark.parametrize(("hits", "total"), [(0, 3), (3, 3), (2, 9)])
def test_share_interval_ends_where_the_count_turns_unlikely(hits: int, total: int) -> None:
    (low, high), p_value = share_test(hits, total)
    assert p_value == pytest.approx(stats.binomtest(hits, total).pvalue)
    assert low == 0 if hits == 0 else stats.binom.sf(hits - 1, total, low) == pytest.approx(0.025)
    assert (
        high == 1 if hits == total else stats.binom.cdf(hits, total, high) == pytest.approx(0.025)
    )


@pytest.mark.parametrize("n", [3, 5, 9])
def test_few_values_give_a_test_and_no_interval(n: int) -> None:
    x = np.random.default_rng(n).normal(1, 1, n)
    found = paired_test([*x, math.nan])
    expected = stats.ttest_1samp(x, 0)
    assert (found.n, found.mean) == ((n,), pytest.approx(x.mean()))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert all(map(math.isnan, found.interval))
    apart = unpaired_test(x, 2 * x[::-1])
    assert apart.p_value == pytest.approx(stats.ttest_ind(2 * x, x, equal_var=False).pvalue)
    assert all(map(math.isnan, apart.interval))


@pytest.mark.parametrize(("few", "many"), [(3, 9), (4, 12), (5, 15), (3, 5)])
def test_arms_of_unequal_size_do_not_differ_more_often_than_said(few: int, many: int) -> None:
    """Half of all runs end low in both arms. Welch's test alone errs in 17 % of 3 against 9."""
    rng, wrong, times = np.random.default_rng(few), 0, 300
    for _ in range(times):
        arms = (0.5 * rng.normal(size=n) - 20 * (rng.random(n) < 0.5) for n in (few, many))
        wrong += unpaired_test(*arms).p_value <= 0.05
    assert stats.binom.sf(wrong - 1, times, 0.05) > 0.001


def test_arms_of_unequal_size_that_differ_are_told_apart() -> None:
    few, many = [0.1, 0.3, 0.2], [2.1, 2.0, 2.4, 1.9, 2.2, 2.3]
    # of the 84 ways to choose 3 of 9 values, one parts them so
    assert unpaired_test(few, many).p_value == pytest.approx(1 / 84, rel=0.01)
    assert math.isnan(unpaired_test([0.1] * 3, [0.1] * 9).p_value)


def collapsing(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(size=n) - 20 * (rng.random(n) < 0.3)


@pytest.mark.lengthy
@pytest.mark.parametrize("design", ["pairs", "apart"])
def test_the_interval_survives_collapse(design: str) -> None:
    """Student's covers 70 % with three runs of which some collapse; this says nothing there."""
    rng, inside = np.random.default_rng(1), 0
    times = 200
    for _ in range(times):
        one, two = collapsing(rng, ENOUGH), rng.normal(size=ENOUGH)
        found = paired_test(two - one) if design == "pairs" else unpaired_test(one, two)
        inside += found.interval[0] <= 6 <= found.interval[1]
        if abs(found.p_value - 0.05) > 0.002:
            agree = (found.p_value > 0.05) == (found.interval[0] <= 0 <= found.interval[1])
            assert agree, "interval and p-value are of one test"
    assert stats.binom.cdf(inside, times, 0.95) > 0.001


def test_the_interval_is_students_where_values_are_normal_and_many() -> None:
    x = np.random.default_rng(3).normal(2, 3, 400)
    found = paired_test(x)
    expected = stats.ttest_1samp(x, 0).confidence_interval()
    half = (expected.high - expected.low) / 2
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.06 * half)
    assert unpaired_test(np.zeros(400), x).interval == pytest.approx(found.interval, abs=0.05)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 5.0], [2.0, 2.0, 2.0], [2.0] * 12])
def test_no_spread_or_two_values_give_no_test(values: list[float]) -> None:
    for found in (paired_test(values), unpaired_test(values, values)):
        assert math.isnan(found.p_value)
        assert all(map(math.isnan, found.interval))


@pytest.mark.parametrize("n", [3, 12])
def test_differences_that_rounding_tells_apart_have_no_spread(n: int) -> None:
    """Pairs that each differ by one answer of a hundred once gave p = 6e-30."""
    for first in np.random.default_rng(0).integers(40, 60, size=(50, n)):
        gains = 100 * ((first + 1) / 100) - 100 * (first / 100)
        found = paired_test(gains)
        assert math.isnan(found.p_value)
        assert found.mean == pytest.approx(1.0)
