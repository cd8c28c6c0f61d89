"""The test of counts against scipy's permutation test, and its errors where events cluster."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from stabkit.analyze import counts
from stabkit.analyze.counts import Counts, rates_test


@pytest.mark.parametrize("sizes", [(3, 3), (4, 4), (5, 5), (6, 6)])
def test_all_exchanges_of_runs_are_scipys(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sizes[0])
    for _ in range(5):
        one, two = (rng.poisson(rng.gamma(1, 3, n)) for n in sizes)
        if not (one.sum() + two.sum()):
            continue
        exposure = [rng.uniform(100, 500, n) for n in sizes]
        rate = (one.sum() + two.sum()) / np.concatenate(exposure).sum()
        beyond = [c - rate * x for c, x in zip((one, two), exposure, strict=True)]
        expected = stats.permutation_test(
            beyond, lambda a, b, axis: np.abs(b.sum(axis)), vectorized=True,
            n_resamples=np.inf, alternative="greater",
        )  # fmt: skip
        found = rates_test(Counts(one, exposure[0]), Counts(two, exposure[1]))
        assert found.p_value == pytest.approx(expected.pvalue)
        assert abs(found.excess) == pytest.approx(expected.statistic)
        assert found.smallest <= found.p_value
        assert found.smallest >= 2 / math.comb(sum(sizes), sizes[0]) - 1e-12


def test_pairs_are_exchanged_within_themselves_as_scipy_does() -> None:
    before, after = np.array([3, 0, 2, 5, 1, 4, 2]), np.array([1, 0, 1, 1, 0, 2, 3])
    expected = stats.permutation_test(
        (before, after), lambda a, b: b.sum() - a.sum(), permutation_type="samples",
        n_resamples=np.inf,
    )  # fmt: skip
    seeds = range(7)
    found = rates_test(Counts(before, within=seeds), Counts(after, within=seeds))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_a_published_data_set() -> None:
    """Fisher exchanged pairs of Darwin's maize: 1,726 of 32,768 (The Design of Experiments)."""
    differences = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    crossed = [max(d, 0) for d in differences]
    selfed = [max(-d, 0) for d in differences]
    plants = range(15)
    found = rates_test(Counts(selfed, within=plants), Counts(crossed, within=plants))
    assert found.p_value == 1726 / 2**15


def test_of_too_many_exchanges_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Counts([0, 1, 0, 2, 0, 1, 3, 0]), Counts([2, 4, 1, 0, 5, 2, 3, 6])
    every = rates_test(one, two)
    monkeypatch.setattr(counts, "EXACT", 100)
    drawn = rates_test(one, two)
    error = math.sqrt(every.p_value / counts.DRAWN)
    assert drawn.p_value == pytest.approx(every.p_value, abs=4 * error)
    assert drawn.p_value == rates_test(one, two).p_value, "the seed is fixed"


def test_three_runs_an_arm_are_too_few_and_four_are_enough() -> None:
    three = rates_test(Counts([0, 0, 0]), Counts([9, 8, 7]))
    assert (three.p_value, three.smallest, three.too_few) == (0.1, 0.1, True)
    assert three.words() == "p = 0.1; too few: such runs cannot show less than p = 0.1"
    four = rates_test(Counts([0] * 4), Counts([9, 8, 7, 6]))
    assert (four.p_value, four.too_few) == (pytest.approx(2 / 70), False)
    lonely = rates_test(Counts([0] * 10), Counts([1] + [0] * 9))
    assert lonely.too_few, "one dip in twenty runs tells nothing"


def test_a_fall_for_good_is_no_calmer_than_two_dips_that_pass() -> None:
    """One dip after 15 of 500 steps, never left; against two dips of 20 steps."""
    collapsed = Counts([1] * 5, [15] * 5)
    recovered = Counts([2] * 5, [460] * 5)
    found = rates_test(recovered, collapsed)
    assert found.excess > 0
    assert found.p_value == pytest.approx(2 / math.comb(10, 5))
    at_once = rates_test(recovered, Counts([1] * 5, [0] * 5))
    assert at_once.excess > 0, "an arm without a step outside of dips has the highest rate"


def test_what_settings_do_is_no_difference_of_arms() -> None:
    """Runs at the large rate dip in both arms; arms have unequal shares of them."""
    one = Counts([9, 9, 9, 0], within=["large"] * 3 + ["small"])
    two = Counts([9, 0, 0, 0], within=["large"] + ["small"] * 3)
    assert rates_test(one, two).excess == pytest.approx(0)


def test_nothing_counted_is_not_tested() -> None:
    for first, second in ((Counts([0]), Counts([0, 0])), (Counts([]), Counts([]))):
        found = rates_test(first, second)
        assert math.isnan(found.p_value)
        assert found.too_few
        assert found.words() == "cannot be tested"
    with pytest.raises(ValueError, match="events, exposure and within have 2, 1 and 2 entries"):
        rates_test(Counts([1, 2], [5.0]), Counts([1]))


def clustered(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    return rng.poisson(rng.gamma(1.0, 2.0, n))


@pytest.mark.lengthy
@pytest.mark.parametrize(("first", "second"), [(5, 5), (4, 7), (12, 12)])
def test_it_errs_in_one_case_of_twenty_where_dips_cluster(first: int, second: int) -> None:
    rng = np.random.default_rng(first)
    times, wrong, poisson = 100 if first > 5 else 300, 0, 0
    for _ in range(times):
        one, two = clustered(rng, first), clustered(rng, second)
        wrong += rates_test(Counts(one), Counts(two)).p_value <= 0.05
        total, share = int(one.sum() + two.sum()), first / (first + second)
        poisson += bool(total) and stats.binomtest(int(one.sum()), total, share).pvalue <= 0.05
    assert stats.binom.sf(wrong - 1, times, 0.05) > 0.001
    assert poisson / times > 0.1, "the case is one that fools a test of dips"
