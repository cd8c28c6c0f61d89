"""Intervals hold what they claim, by simulation and against the definitions they come from."""

import math

import numpy as np
import pytest
from scipy import stats

from stabkit.analyze.intervals import (
    bootstrap_interval,
    detectable_effect,
    rates_p_value,
    share_test,
    student_test,
)

TIMES = 2000


def slack(share: float, times: int = TIMES) -> float:
    """Three standard errors of a simulated share: one true interval in 700 lies outside."""
    return 3 * math.sqrt(share * (1 - share) / times)


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


@pytest.mark.parametrize("n", [3, 8, 20])
def test_student_covers_at_its_level(n: int) -> None:
    rng = np.random.default_rng(n)
    inside = 0
    for _ in range(TIMES):
        low, high = student_test(rng.normal(2, 3, n)).interval
        inside += low <= 2 <= high
    assert abs(inside / TIMES - 0.95) < slack(0.95)


@pytest.mark.parametrize(("n", "stated"), [(8, 0.87), (20, 0.92)])
def test_bootstrap_covers_as_stated(n: int, stated: float) -> None:
    rng = np.random.default_rng(n)
    times = 100  # each draws 9,999 resamples
    inside = 0
    for _ in range(times):
        low, high = bootstrap_interval(rng.normal(size=n))
        inside += low <= 0 <= high
    assert abs(inside / times - stated) < slack(stated, times)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_no_spread_gives_no_interval(values: list[float]) -> None:
    for interval in (student_test(values).interval, bootstrap_interval(values)):
        assert all(map(math.isnan, interval))


def test_the_student_test_is_scipys() -> None:
    found = student_test([1.0, 2.0, math.nan, 6.0])
    expected = stats.ttest_1samp([1.0, 2.0, 6.0], 0)
    assert (found.n, found.mean) == (3, 3)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("n", "second"), [(3, None), (8, None), (4, 4), (3, 9)])
def test_the_detectable_effect_is_found_four_times_in_five(n: int, second: int | None) -> None:
    sd, times = 2.5, 20_000
    effect = detectable_effect(sd, n, second)
    rng = np.random.default_rng(0)
    one = rng.normal(effect, sd, (times, n))
    if second is None:
        found = stats.ttest_1samp(one, 0, axis=1).pvalue
    else:
        found = stats.ttest_ind(one, rng.normal(0, sd, (times, second)), axis=1).pvalue
    assert abs(np.mean(found < 0.05) - 0.8) < slack(0.8, times)


def test_one_pair_detects_nothing() -> None:
    assert math.isnan(detectable_effect(1.0, 1))
    assert math.isnan(detectable_effect(0.0, 5))
    assert math.isnan(detectable_effect(math.nan, 5))


def test_rates_are_compared_by_their_exposure() -> None:
    assert rates_p_value(10, 1000, 10, 1000) == 1
    # no count on the other side is as unlikely: the exact test is this one tail
    tail = stats.binom.sf(9, 20, 100 / 1100)
    assert rates_p_value(10, 100, 10, 1000) == pytest.approx(tail)
    assert math.isnan(rates_p_value(0, 100, 0, 100))
    rng = np.random.default_rng(0)
    counts = zip(rng.poisson(3, TIMES), rng.poisson(9, TIMES), strict=True)
    false = [rates_p_value(int(a), 1.0, int(b), 3.0) < 0.05 for a, b in counts]
    assert np.mean(false) < 0.05 + slack(0.05), "an exact test errs no more often than it says"
