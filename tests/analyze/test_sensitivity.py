"""What a range of rates costs, on levels made by hand; the frontier against brute force."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stabkit.analyze import sensitivity
from stabkit.analyze.sensitivity import (
    FALSE_ALARMS,
    lr_sensitivity,
    points_lost,
    stable_frontier,
    unstable_from,
)
from stabkit.analyze.verdict import UNSTABLE

ARM = ["arm"]


def levels(arm: str, by_rate: dict[float, list[float]], untrained: float = 10.0) -> pd.DataFrame:
    rows = [
        {"arm": arm, "optim.lr": lr, "seed": seed, "level": level, "untrained": untrained}
        for lr, values in by_rate.items()
        for seed, level in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_points_lost_is_the_mean_of_the_curve_between_its_points() -> None:
    rates, level = np.array([1e-4, 3e-4, 1e-2]), np.array([40.0, 50.0, 20.0])
    fine = np.linspace(np.log(1e-4), np.log(1e-2), 200_001)
    below = 50 - np.interp(fine, np.log(rates), level)
    # a sum of 200,001 points is off by less than one step of the grid times the largest value
    assert points_lost(rates, level) == pytest.approx(below.mean(), abs=40 / 200_000)
    assert points_lost(rates, level + 7) == pytest.approx(points_lost(rates, level))
    assert points_lost(10 * rates, level) == pytest.approx(points_lost(rates, level))


def test_a_flat_arm_costs_nothing_and_divergence_what_was_never_learned() -> None:
    flat = levels("flat", {1e-3: [50.0], 1e-2: [50.0]})
    diverged = levels("diverged", {1e-3: [50.0], 1e-2: [1.0]})
    table = lr_sensitivity(pd.concat([flat, diverged]), ARM).set_index("arm")
    assert table.loc["flat", "sensitivity"] == 0
    assert table.loc["diverged", "sensitivity"] == pytest.approx((50 - 10) / 2), "half a triangle"
    assert table["gained"].tolist() == [40, 40]
    assert table[["low", "high"]].isna().all(axis=None), "one seed shows no spread"


def test_arms_are_compared_over_the_rates_that_they_share() -> None:
    wide = levels("wide", {1e-3: [50.0], 1e-2: [50.0], 1e-1: [10.0]})
    narrow = levels("narrow", {1e-3: [50.0], 1e-2: [50.0]})
    table = lr_sensitivity(pd.concat([wide, narrow]), ARM)
    assert table["sensitivity"].tolist() == [0, 0]
    assert table["largest"].tolist() == [1e-2, 1e-2]
    assert lr_sensitivity(wide, ARM)["sensitivity"].iloc[0] == pytest.approx(10)


def test_the_interval_is_that_of_all_resamples_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    few = levels("a", {1e-3: [50.0] * 9, 1e-2: [40.0] * 9})
    assert lr_sensitivity(few, ARM)["low"].isna().all(), "nine seeds are too few"
    monkeypatch.setattr(sensitivity, "ENOUGH", 3)
    seeds = {1e-3: [50.0, 52.0, 49.0], 1e-2: [40.0, 30.0, 45.0]}
    (row,) = lr_sensitivity(levels("a", seeds), ARM).to_dict("records")
    matrix = np.array(list(seeds.values())).T
    every = [
        points_lost(list(seeds), matrix[list(pick)].mean(axis=0))
        for pick in itertools.product(range(3), repeat=3)
    ]
    # of the 27 resamples the outermost have 3.7 % each, so the 2.5 % quantiles are these
    assert (row["low"], row["high"]) == pytest.approx((min(every), max(every)))
    assert row["low"] < row["sensitivity"] < row["high"]


@pytest.mark.lengthy
def test_coverage_is_as_stated() -> None:
    rates, truth = np.array([0.004, 0.016, 0.04, 0.1]), np.array([50.0, 48.0, 40.0, 20.0])
    rng = np.random.default_rng(3)
    inside, times = 0, 100
    for _ in range(times):
        noisy = truth + rng.normal(0, 1, (10, 1)) + rng.normal(0, 2, (10, 4))
        frame = levels("a", {r: list(noisy[:, i]) for i, r in enumerate(rates)})
        (row,) = lr_sensitivity(frame, ARM).to_dict("records")
        inside += row["low"] <= points_lost(rates, truth) <= row["high"]
    assert abs(inside / times - 0.9) < 3 * math.sqrt(0.9 * 0.1 / times)


def test_one_rate_has_no_sensitivity() -> None:
    with pytest.raises(ValueError, match=r"arm a: one optim.lr alone \(0.001\)"):
        lr_sensitivity(levels("a", {1e-3: [50.0]}), ARM)


def fallen(verdicts: list[str]) -> int:
    return sum(verdict in UNSTABLE for verdict in verdicts)


@pytest.mark.lengthy
def test_the_frontier_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    verdicts = ["stable", "stable", "stable", "unstable", "collapsed", "diverged", "unknown"]
    seen = set()
    for _ in range(200):
        rows = [
            {"train.batch": batch, "optim.lr": lr, "verdict": str(rng.choice(verdicts))}
            for batch in (8, 16)
            for lr in (1, 2, 3, 4)
            for _ in range(rng.integers(0, 5))
        ]
        if not rows:
            continue
        for found in stable_frontier(pd.DataFrame(rows)).to_dict("records"):
            mine = [row for row in rows if row["train.batch"] == found["train.batch"]]
            at = {lr: [r["verdict"] for r in mine if r["optim.lr"] == lr] for lr in (1, 2, 3, 4)}
            stable = math.nan
            for lr in (1, 2, 3, 4):
                if at[lr] and all(verdict == "stable" for verdict in at[lr]):
                    stable = lr
            bad = [lr for lr in (1, 2, 3, 4) if fallen(at[lr]) >= min(2, max(1, len(at[lr])))]
            above = [lr for lr in bad if math.isnan(stable) or lr > stable]
            unstable = above[0] if above else math.nan
            expected = (stable, unstable, len(bad) - len(above))
            assert (found["stable"], found["unstable"], found["below"]) == pytest.approx(
                expected, nan_ok=True
            )
            seen.add((math.isnan(stable), math.isnan(unstable), expected[2] > 0))
    assert len(seen) >= 5, "every kind of answer was compared"


@pytest.mark.lengthy
def test_one_false_alarm_does_not_undo_a_frontier() -> None:
    """With 4 % false alarms, 3 seeds and 4 rates, two sweeps of five have an alarm somewhere."""
    rng, shown, alarmed = np.random.default_rng(0), 0, 0
    for _ in range(100):
        bad = rng.random((4, 3)) < 0.04
        verdicts = np.where(bad.ravel(), "unstable", "stable")
        frame = pd.DataFrame({"optim.lr": np.repeat([1, 2, 3, 4], 3), "verdict": verdicts})
        (row,) = stable_frontier(frame, by=[]).to_dict("records")
        shown += bool(row["below"]) or not math.isnan(row["unstable"])
        alarmed += bool(bad.any())
    assert alarmed / 100 > 0.25
    assert shown / 100 < 0.08


@pytest.mark.parametrize("runs", range(2, 40))
def test_unstable_are_more_runs_than_false_alarms_explain(runs: int) -> None:
    number = unstable_from(runs)
    assert stats.binom.sf(number - 1, runs, FALSE_ALARMS) <= 0.025
    assert stats.binom.sf(number - 2, runs, FALSE_ALARMS) > 0.025


def test_a_rate_is_stable_with_one_alarm_in_ten_and_open_with_one_in_three() -> None:
    def row(runs: int, bad: int) -> dict[str, float]:
        verdicts = ["unstable"] * bad + ["stable"] * (runs - bad)
        frame = pd.DataFrame({"optim.lr": [1.0] * runs, "verdict": verdicts})
        (found,) = stable_frontier(frame, by=[]).to_dict("records")
        return found

    assert row(10, 1)["stable"] == 1
    for runs, bad in ((3, 1), (10, 2)):
        found = row(runs, bad)
        assert math.isnan(found["stable"])
        assert math.isnan(found["unstable"])
    assert row(10, 3)["unstable"] == row(3, 2)["unstable"] == row(1, 1)["unstable"] == 1


def test_the_frontier_without_a_second_factor_is_one_row() -> None:
    rows = [{"optim.lr": lr, "verdict": v} for lr, v in [(1, "stable"), (2, "unstable")]]
    (row,) = stable_frontier(pd.DataFrame(rows), by=[]).to_dict("records")
    assert row == {"stable": 1, "unstable": 2, "below": 0}


def test_configurations_without_a_seed_and_rates_of_zero_are_no_trouble() -> None:
    frame = levels("a", {0.0: [5.0], 1e-3: [50.0], 1e-2: [40.0]})
    frame["seed"] = math.nan
    (row,) = lr_sensitivity(frame, ARM).to_dict("records")
    assert row["sensitivity"] == pytest.approx(5.0)
    assert (row["smallest"], row["rates"], row["seeds"]) == (1e-3, 2, 1)
