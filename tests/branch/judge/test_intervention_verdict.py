"""Verdicts on tables whose truth is known, and the exact tests behind them."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.calibration.branch_studies import FULL, QUICK, Truth, simulated_table
from benchmarks.calibration.branches import reach_table
from stabkit.branch.judge.attribution import judge_branches, over_events
from stabkit.branch.judge.committor import commit_step, commit_words, committor
from stabkit.branch.judge.exact_tests import (
    Share,
    fewer,
    fewer_of_few,
    lower,
    prevented_fraction,
    smallest,
)
from stabkit.branch.judge.intervention_verdict import VERDICTS


def test_events_are_compared_by_counting_every_division() -> None:
    flags = [0, 0, 1, 0, 1, 1, 1, 0, 1]  # 1 of 4 against 4 of 5
    divisions = list(itertools.combinations(range(9), 4))
    by_hand = sum(sum(flags[i] for i in chosen) <= 1 for chosen in divisions) / len(divisions)
    assert fewer(Share(1, 4), Share(4, 5)) == pytest.approx(by_hand)
    assert (
        fewer(Share(0, 4), Share(6, 6)) == pytest.approx(smallest(4, 6)) == pytest.approx(1 / 210)
    )
    assert fewer(Share(0, 4), Share(0, 0)) == 1


@pytest.mark.parametrize(("these", "own"), [((0, 3), (3, 4)), ((0, 6), (2, 3)), ((1, 3), (4, 4))])
def test_boschloo_is_the_largest_chance_of_tables_as_rare(
    these: tuple[int, int], own: tuple[int, int]
) -> None:
    n, m, seen = these[1], own[1], fewer(Share(*these), Share(*own))
    rare = [(a, b) for a, b in itertools.product(range(n + 1), range(m + 1))
            if fewer(Share(a, n), Share(b, m)) <= seen * (1 + 1e-9)]  # fmt: skip
    chances = np.linspace(0, 1, 2001)
    total = sum(stats.binom.pmf(a, n, chances) * stats.binom.pmf(b, m, chances) for a, b in rare)
    assert fewer_of_few(Share(*these), Share(*own)) == pytest.approx(total.max(), abs=1e-4)
    assert fewer_of_few(Share(*these), Share(0, 0)) == 1


def test_areas_are_compared_as_by_scipy_and_ties_count_as_seen() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 5, 4).astype(float), rng.integers(1, 6, 6).astype(float)
    exact = stats.permutation_test(
        (one, other), lambda a, b: a.mean() - b.mean(), n_resamples=np.inf, alternative="less"
    )
    assert lower(list(one), list(other)) == pytest.approx(exact.pvalue)
    assert lower([0.1 + 0.2, 1.0], [0.3, 1.0]) == pytest.approx(5 / 6)  # equal but for rounding
    assert math.isnan(lower([], [1.0]))


def test_very_many_divisions_are_drawn_and_the_one_seen_counts() -> None:
    low, high = [float(i) for i in range(13)], [float(i) for i in range(20, 33)]
    assert 0 < lower(low, high) < 1e-4
    assert lower(high, low) == 1


@pytest.mark.parametrize(("p1", "p0"), [(0.0, 0.9), (0.4, 0.9), (0.8, 0.5)])
def test_the_interval_of_the_prevented_fraction_covers(p1: float, p0: float) -> None:
    """Every outcome of 6 and 12 branches, weighted by its chance."""
    covered = 0.0
    for x1, x0 in itertools.product(range(7), range(13)):
        _, low, high = prevented_fraction(Share(x1, 6), Share(x0, 12))
        chance = stats.binom.pmf(x1, 6, p1) * stats.binom.pmf(x0, 12, p0)
        covered += chance * (low <= 1 - p1 / p0 <= high)
    assert covered >= 0.95


def test_the_prevented_fraction_has_the_ends_of_two_intervals_of_97_5_percent() -> None:
    found, low, high = prevented_fraction(Share(0, 6), Share(12, 12))
    assert (found, high) == (1, 1)
    assert low == pytest.approx(1 - (1 - 0.0125 ** (1 / 6)) / 0.0125 ** (1 / 12))


@pytest.mark.parametrize(
    ("last", "verdict"), [(39.1, "prevented"), (38.9, "prevented, at a price")]
)
def test_less_than_a_point_is_no_price(last: float, verdict: str) -> None:
    table = simulated_table(3, QUICK, 1.0, Truth(0.0))
    table["last"] = 40.0
    table.loc[table["change"] == "change 0", "last"] = last
    first = judge_branches(table).interventions.iloc[0]
    assert first["p_price"] < 0.05
    assert first["verdict"] == verdict


@pytest.mark.parametrize("size", [QUICK, FULL])
@pytest.mark.parametrize(
    ("truth", "verdict"),
    [
        (Truth(0.0), "prevented"),
        (Truth(0.0, price=20.0), "prevented, at a price"),
        (Truth(0.0, moved=1.0), "postponed"),
        (Truth(1.0), "no different from a nudge"),
        (Truth(1.0, price=20.0), "worse than a nudge"),
    ],
)
def test_a_certain_truth_gets_its_verdict(size: object, truth: Truth, verdict: str) -> None:
    judged = judge_branches(simulated_table(3, size, 1.0, truth))  # type: ignore[arg-type]
    rows = judged.interventions
    assert rows["verdict"].tolist() == [verdict] + ["no different from a nudge"] * (len(rows) - 1)
    assert f"change 0: {verdict}." in judged.text()
    assert judged.text().count("this event of this run only") == 1


def test_a_cure_that_any_change_of_its_size_gives_is_no_cure() -> None:
    judged = judge_branches(simulated_table(3, FULL, 1.0, Truth(0.0), own_shams=0.0))
    first = judged.interventions.iloc[0]
    assert first["p"] < 0.05 < first["p_own"]  # it beats placebos and the other families' shams
    assert first["verdict"] == "no different from a nudge"
    costly = judge_branches(simulated_table(3, FULL, 1.0, Truth(0.0, price=20.0), own_shams=0.0))
    assert costly.interventions["verdict"].iloc[0] == "worse than a nudge"


def test_a_change_that_does_harm_is_told_to_do_so() -> None:
    judged = judge_branches(simulated_table(3, QUICK, 1.0, Truth(1.0, price=20.0)))
    first, second = judged.lines()[2:4]
    assert first.startswith("change 0: worse than a nudge. 3 of 3 repeat the event")
    assert "points below the placebos at the horizon, p = 0.018" in first
    assert "points below" not in second


def test_a_smaller_fall_is_told_where_the_event_comes_by_chance() -> None:
    """Half of all branches have the event, so it is not attributable; the areas still differ."""
    table = simulated_table(3, QUICK, 0.5, Truth(0.5))
    assert "falls less" not in judge_branches(table).text()
    first = table["change"] == "change 0"
    table["area"] = 300.0 + np.arange(len(table))
    table.loc[first, "area"] = [50.0, 60.0, 70.0]
    judged = judge_branches(table)
    assert judged.problem
    shams = table["kind"] == "sham"
    assert (
        f"(60 against {table[shams]['area'].mean():.0f} points x steps; corrected" in judged.text()
    )
    assert judged.interventions["p_area"].iloc[0] == pytest.approx(3 / math.comb(15, 3))
    assert judged.interventions["p_area_own"].iloc[0] == pytest.approx(1 / math.comb(7, 3))
    assert judged.answer().endswith("Accuracy falls less with: change 0.")
    own = shams & (table["family"] == table.loc[first, "family"].iloc[0])
    table.loc[own, "area"] = 55.0  # any change of its kind does it
    assert "falls less" not in judge_branches(table).text()


def test_an_event_that_placebos_prevent_is_not_attributable() -> None:
    table = simulated_table(3, QUICK, 1.0, Truth(0.0))
    table.loc[table[table["kind"] == "placebo"].index[:2], "event"] = False
    judged = judge_branches(table)
    assert set(judged.interventions["verdict"]) == {"not attributable"}
    assert "6 of 8 placebos repeat the event, and 7 of 8 are needed" in judged.text()
    table.loc[table["kind"] == "control", "event"] = False
    assert "the control from step 140 does not show the event" in judge_branches(table).problem
    assert "no control" in judge_branches(table[table["kind"] != "control"]).problem


def test_too_few_branches_are_told_how_many_would_decide() -> None:
    table = simulated_table(3, QUICK, 1.0, Truth(0.0))
    first = (table["change"] == "change 0") & (table["replicate"] > 0)
    (word,) = judge_branches(table[~first]).interventions["verdict"][:1]
    assert word == "undecided (needs 2 replicates)"
    no_shams = judge_branches(table[table["kind"] != "sham"]).interventions
    assert no_shams["verdict"].iloc[0] == "undecided (needs shams of its family)"


def test_the_commit_step_is_where_the_share_stays_high() -> None:
    rows = [(step, i < events) for step, events in ((100, 8), (120, 5), (140, 8), (150, 8))
            for i in range(8)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["begin", "event"]).assign(kind="placebo")
    shares = committor(table)
    assert commit_step(shares) == 140  # 100 does not count: the share falls again
    assert "between steps 120 and 140" in commit_words(shares)
    assert shares["low"].iloc[0] == pytest.approx(0.025 ** (1 / 8))  # 8 of 8
    assert commit_step(shares[:2]) is None


@pytest.mark.lengthy
def test_several_events_are_joined_by_a_sign_test() -> None:
    judged = [judge_branches(simulated_table(seed, QUICK, 1.0, Truth(0.0))) for seed in range(6)]
    spoiled = simulated_table(9, QUICK, 0.0, Truth(0.0))
    found = over_events([*judged, judge_branches(spoiled)]).set_index("change")
    assert found.loc["change 0", ["better", "worse", "same"]].tolist() == [6, 0, 0]
    assert found.loc["change 0", "p_value"] == pytest.approx(2 / 2**6)
    assert found.loc["change 1", ["better", "worse", "same"]].tolist() == [0, 0, 6]


def test_the_table_of_reach_is_the_arithmetic_of_divisions() -> None:
    quick, full = reach_table().splitlines()[2:4]
    assert f"| {1 / math.comb(23, 3):.2g} |" in quick
    assert f"| {1 / math.comb(26, 6):.2g} |" in full
    assert "0 of 3" in quick
    assert "1 of 6" in full
    assert len(VERDICTS) == len(set(VERDICTS))
