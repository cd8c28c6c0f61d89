"""Comparisons of arms: tests are their definitions, and words say how sure they are."""

import math

import numpy as np
import pytest
from scipy import stats

from stabkit.analyze.compare import compare_apart, compare_pairs, in_words


def test_pairs_are_compared_by_their_differences() -> None:
    first, second = [50.0, 60.0, 70.0], [51.0, 62.0, 73.0]
    found = compare_pairs(first, second)
    expected = stats.ttest_rel(second, first)
    assert (found.effect, found.p_value) == pytest.approx((2.0, expected.pvalue))
    assert found.n == (3,)
    assert math.isnan(found.interval[0]), "three pairs give no interval"


def test_pairing_finds_what_arms_apart_do_not() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(50, 10, 12)
    other = base + 1 + 0.2 * rng.normal(size=12)
    pairs, apart = compare_pairs(base, other), compare_apart(base, other)
    assert pairs.p_value < 0.001
    assert pairs.interval[0] > 0
    assert apart.p_value > 0.5
    assert apart.interval[0] < 0 < apart.interval[1]


def test_welch_is_used_where_nothing_pairs() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [9.0, 1.0, 30.0, 12.0, 2.0]
    found = compare_apart([*first, math.nan], second)
    expected = stats.ttest_ind(second, first, equal_var=False)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.n == (4, 5)
    assert not found.paired


def test_a_level_that_is_missing_takes_its_pair_along() -> None:
    found = compare_pairs([1.0, math.nan, 3.0], [2.0, 5.0, 5.0])
    assert (found.n, found.effect) == ((2,), 1.5)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([1.0], [3.0], "b ends 2.0 points above a (1 pair): fewer than 3 cannot tell"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "values without any spread"),
        ([1.0, 2.0, 3.0], [1.1, 2.4, 2.7], "3 pairs): no difference is shown"),
        ([1.0, 2.0, 3.0], [0.0, 0.9, 2.1], "b is lower. There are too few runs for an interval"),
        (list(range(12)), [i + 1 + 0.01 * i for i in range(12)], "95 % interval +1.0 to +1.1, p ="),
        ([], [], "no levels to compare"),
    ],
)
def test_words_say_how_sure_it_is(first: list[float], second: list[float], says: str) -> None:
    assert says in in_words(compare_pairs(first, second), "a", "b")


def test_words_say_unpaired() -> None:
    text = in_words(compare_apart([1.0, 2.0, 4.0], [2.0, 3.0, 4.0]), "a", "b")
    assert "unpaired: 3 and 3 runs" in text
    assert "takes 10 runs of each" in text
