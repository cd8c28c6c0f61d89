import math

import numpy as np
import pytest
from scipy import stats

from stabkit.analyze.claims import mean_above_zero, more_events, together
from stabkit.detect.significance import holm


def test_mean_interval_is_students() -> None:
    values = [0.4, 0.6, 1.7]  # the paper's gains by freezing
    claim = mean_above_zero("freezing gains", values, "points")
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (claim.low, claim.high) == pytest.approx((expected.low, expected.high))
    assert claim.verdict == "undecided", "three pairs as different as these do not decide"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.0, 2.1, 1.9], "holds"),
        ([-2.0, -2.1, -1.9], "fails"),
        ([5.0], "undecided"),
        ([], "undecided"),
    ],
)
def test_verdicts_need_an_interval_off_zero(values: list[float], verdict: str) -> None:
    assert mean_above_zero("claim", values, "points").verdict == verdict


def test_counts_decide_as_the_exact_binomial_test_does() -> None:
    for more, less in [(5, 0), (6, 0), (9, 1), (7, 3), (0, 6), (0, 0), (30, 30)]:
        verdict = more_events("claim", more, less).verdict
        total = more + less
        p = stats.binomtest(more, total).pvalue if total else 1.0
        decided = "holds" if more > less else "fails"
        assert verdict == (decided if p < 0.05 else "undecided"), (more, less)


def test_counts_interval_covers_the_true_ratio() -> None:
    """Poisson counts with a true ratio of 3: at least 95 % of intervals hold log2 3."""
    rng = np.random.default_rng(0)
    inside = 0
    for more, less in zip(rng.poisson(9, 2000), rng.poisson(3, 2000), strict=True):
        claim = more_events("claim", int(more), int(less))
        inside += claim.low <= math.log2(3) <= claim.high
    assert inside / 2000 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_no_events_say_nothing() -> None:
    claim = more_events("claim", 0, 0)
    assert (claim.low, claim.high) == (-math.inf, math.inf)
    assert "UNDECIDED" in str(claim)


def test_holm_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        p = [float(x) for x in rng.random(rng.integers(1, 7)) ** 3]
        expected = []
        for one in p:
            smaller = [q for q in p if q <= one]  # no ties among random numbers
            steps = [(len(p) - sorted(p).index(q)) * q for q in smaller]
            expected.append(min(1.0, max(steps)))
        assert holm(p) == pytest.approx(expected)


def test_holm_keeps_the_error_of_many_claims() -> None:
    rng = np.random.default_rng(1)
    alarms = sum(min(holm(list(rng.random(10)))) <= 0.05 for _ in range(4000))
    assert alarms / 4000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_claims_carry_the_p_value_of_their_interval() -> None:
    for values in ([1.0, 2.0, 4.0], [-1.0, 1.0, 3.0], [5.0, 5.1]):
        claim = mean_above_zero("claim", values, "points")
        assert (claim.p_value < 0.05) == (claim.verdict != "undecided")
    assert math.isnan(mean_above_zero("claim", [5.0], "points").p_value)
    assert math.isnan(mean_above_zero("claim", [5.0, 5.0], "points").p_value)
    assert mean_above_zero("claim", [5.0, 5.0], "points").verdict == "undecided"


def test_what_falls_when_claims_are_counted_is_named() -> None:
    sure = mean_above_zero("sure", [2.0, 2.1, 1.9], "points")
    barely = mean_above_zero("barely", [1.0, 2.0, 4.5, 3.0], "points")
    empty = mean_above_zero("empty", [], "points")
    unsure = [mean_above_zero(f"unsure {i}", [-1.0, 1.0, 2.0], "points") for i in range(3)]
    assert sure.verdict == barely.verdict == "holds"
    text = together([sure, barely, empty, *unsure])
    assert "5 claims were tested at once: of those decided above, 1 of 2 stand" in text
    assert f"undecided then: barely (corrected p = {4 * barely.p_value:.2g})" in text
    assert "all stand" in together([sure, *unsure])
    assert together([sure]) == str(sure)
    assert together(unsure) == "\n".join(map(str, unsure))
