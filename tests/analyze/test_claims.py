import math

import numpy as np
import pytest
from scipy import stats

from stabkit.analyze.claims import from_interval, mean_above_zero, more_events, more_often, together
from stabkit.analyze.counts import Counts, rates_test
from stabkit.detect.significance import holm


def test_three_pairs_are_students_and_have_no_interval() -> None:
    values = [0.4, 0.6, 1.7]  # the paper's gains by freezing
    claim = mean_above_zero("freezing gains", values, "points")
    assert claim.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert math.isnan(claim.low)
    assert claim.verdict == "undecided", "three pairs as different as these do not decide"
    assert "n = 3; too few runs for an interval" in str(claim)
    many = mean_above_zero("many", [1.0, 2.0, 3.0] * 4, "points")
    assert "95 % interval" in str(many)
    assert many.low > 0


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.0, 2.1, 1.9], "holds"),
        ([-2.0, -2.1, -1.9], "fails"),
        ([5.0], "undecided"),
        ([], "undecided"),
    ],
)
def test_verdicts_need_a_test(values: list[float], verdict: str) -> None:
    assert mean_above_zero("claim", values, "points").verdict == verdict


def test_counts_decide_by_runs() -> None:
    more, less = Counts([4, 3, 5, 2]), Counts([0, 1, 0, 0])
    claim = more_events("claim", more, less)
    assert (claim.verdict, claim.n) == ("holds", 8)
    assert claim.p_value == rates_test(less, more).p_value == pytest.approx(2 / 70)
    assert claim.effect == pytest.approx(math.log2(14))
    assert "14 to 1 events in 4 and 4 runs" in str(claim)
    assert more_events("claim", less, more).verdict == "fails"
    one = more_events("claim", Counts([14]), Counts([1]))
    assert one.verdict == "undecided", "fifteen dips of two runs are two runs"


def test_three_runs_an_arm_decide_no_count() -> None:
    claim = more_events("claim", Counts([4, 3, 5]), Counts([0, 0, 0]))
    assert claim.verdict == "undecided"
    assert math.isnan(claim.p_value)
    assert math.isinf(claim.effect)
    assert "too few: such runs cannot show less than p = 0.1" in str(claim)


def test_kinds_of_events_decide_as_the_exact_binomial_test_does() -> None:
    for claimed, others in [(5, 0), (6, 0), (9, 1), (7, 3), (0, 6), (30, 30)]:
        claim = more_often("claim", claimed, others)
        p = stats.binomtest(claimed, claimed + others).pvalue
        decided = "holds" if claimed > others else "fails"
        assert claim.p_value == pytest.approx(p)
        assert claim.verdict == (decided if p < 0.05 else "undecided"), (claimed, others)
    assert more_often("claim", 0, 0).verdict == "undecided"


def test_no_events_say_nothing() -> None:
    claim = more_events("claim", Counts([0]), Counts([0]))
    assert math.isnan(claim.p_value)
    assert "UNDECIDED" in str(claim)


def test_a_ratio_that_is_not_finite_is_not_printed() -> None:
    none, some = Counts(np.zeros(5)), Counts(np.ones(5))
    for more, less, words in ((none, none, "0 to 0 events"), (none, some, "0 to 5 events")):
        text = str(more_events("more", more, less))
        assert words in text
        assert "nan" not in text
        assert "inf" not in text


def test_a_claim_by_an_interval_needs_its_test() -> None:
    sure = from_interval("claim", 3.0, 1.0, 5.0, "steps", 9, p_value=0.01)
    assert (sure.verdict, sure.p_value) == ("holds", 0.01)
    assert from_interval("claim", -3.0, -5.0, -1.0, "steps", 9, 0.01).verdict == "fails"
    for low, p_value in ((-1.0, 0.01), (1.0, 0.2), (1.0, math.nan)):
        claim = from_interval("claim", 3.0, low, 5.0, "steps", 9, p_value)
        assert claim.verdict == "undecided", "an interval without a test escapes the correction"


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
    said = "5 claims were tested at once (1 could not be tested): of the 2 decided above, 1 of 2 "
    assert f"{said}stand" in text
    assert f"undecided then: barely (corrected p = {4 * barely.p_value:.2g})" in text
    assert "all stand" in together([sure, *unsure])
    assert together([sure]) == str(sure)
    assert together([sure, empty]) == f"{sure}\n{empty}", "one test needs no correction"
    assert together(unsure) == "\n".join(map(str, unsure))


def test_every_decided_claim_takes_part_in_the_correction() -> None:
    spread = from_interval("by an interval", 3.0, 0.1, 5.0, "steps", 9, 0.04)
    others = [from_interval(f"other {i}", 1.0, -1.0, 3.0, "steps", 9, 0.5) for i in range(10)]
    text = together([spread, *others])
    assert "11 claims were tested at once: of the 1 decided above, 0 of 1 stand" in text
    assert "undecided then: by an interval (corrected p = 0.44)" in text
