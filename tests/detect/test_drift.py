"""Drift: slow sags are found where no dip is; dips, noise and rising curves are none."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from stabkit.detect import find_dips, find_drift
from stabkit.detect.simulate import (
    EVERY,
    HEALTHY,
    TRENDS,
    Planted,
    draw_curve,
    healthy,
    simulate_curve,
)
from stabkit.detect.simulate.trends import rise
from tests.detect.sequential import rarely


def sagging(rng: np.random.Generator, depth: float, back: bool) -> np.ndarray:
    """Rises for 30 evaluations, then falls by `depth` over 40, and rises again or stays."""
    t = np.arange(100)
    level = 0.5 + 0.004 * np.minimum(t, 30)
    level -= depth * np.clip((t - 30) / 40, 0, 1)
    if back:
        level += depth * np.clip((t - 70) / 25, 0, 1)
    return level + 0.005 * rng.normal(size=100)


@pytest.mark.lengthy
@pytest.mark.parametrize("back", [False, True])
def test_a_slow_sag_is_found_as_a_drift_unless_steep_enough_for_a_dip(back: bool) -> None:
    rng, drifts, missed = np.random.default_rng(0), 0, 0
    for _ in range(30):
        curve = sagging(rng, 0.04, back)
        found = find_drift(np.arange(100), curve)
        missed += found.empty and find_dips(np.arange(100), curve).empty
        for drift in found.itertuples():
            drifts += 1
            assert abs(drift.onset - 30) <= 10, "the middle of the highest ten"
            # Levels are means of ten, which round off the top by half a point and a bottom that
            # rises again by one; they are off by noise of .005 / sqrt(10) each.
            assert 0.025 <= drift.depth <= 0.05
            if not back:
                assert drift.trough > 60
                assert np.isnan(drift.recovery)
    assert drifts >= (1 if back else 10), "one that returns is a wide dip to most eyes"
    assert missed <= stats.binom.ppf(0.999, 30, 0.02)


@pytest.mark.lengthy
def test_a_dip_is_not_a_drift() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        curve = simulate_curve(rng, trend="flat", planted=(Planted(40, 20, 0.1),))
        assert len(find_dips(curve.step, curve.accuracy, correct=curve.correct)) == 1
        assert find_drift(curve.step, curve.accuracy, correct=curve.correct).empty


@pytest.mark.lengthy
def test_it_is_sought_before_a_dip_and_not_inside_one_that_never_ends() -> None:
    t = np.arange(120)
    for seed in range(5):
        noise = 0.004 * np.random.default_rng(seed).normal(size=120)
        sag = 0.6 - 0.05 * np.clip((t - 10) / 60, 0, 1)
        passing = sag - 0.1 * ((t >= 90) & (t < 96)) + noise
        assert find_dips(t, passing)["onset"].tolist() == [89]
        found = find_drift(t, passing)
        assert len(found) == 1
        assert found["trough"][0] < 90
        lost = 0.6 - 0.2 * (t >= 40) - 0.08 * np.clip((t - 40) / 80, 0, 1) + noise
        assert find_dips(t, lost)["recovery"].isna().all()
        assert find_drift(t, lost).empty


@pytest.mark.lengthy
def test_healthy_runs_drift_no_more_than_stated() -> None:
    def alarms() -> Iterator[bool]:
        for seed in range(120):
            rng, trend = np.random.default_rng(seed), list(TRENDS)[seed % len(TRENDS)]
            curve = simulate_curve(rng, trend=trend, n=400, ar=0.5 * (seed % 2))
            yield not find_drift(curve.step, curve.accuracy, correct=curve.correct).empty

    assert rarely(alarms(), 0.01, 120)


def test_samples_decide_where_they_are_known() -> None:
    """Two of fifty samples that turn are no evidence; a thousand of 25,000 are."""
    for n, drifts in ((50, 0), (25_000, 1)):
        rng = np.random.default_rng(2)
        level = 0.6 - 0.04 * np.clip((np.arange(100) - 20) / 60, 0, 1)
        bits = rng.random(n) + 0.02 * rng.normal(size=(100, n)) < level[:, None]
        found = find_drift(EVERY * np.arange(100), bits.mean(axis=1), correct=bits)
        assert len(found) == drifts
        assert (found["p_value"] <= 0.01).all()


def test_bad_input_is_refused_as_by_find_dips() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1 or NaN"):
        find_drift(np.arange(10), np.full(10, 50.0))
    assert find_drift([], []).empty


def test_a_long_fall_in_the_noise_of_a_high_rate_is_found_and_a_healthy_rise_is_not() -> None:
    """As recorded at the rate whose noise `restless` is: 11 points down in 30 evaluations."""
    found = healthy_found = 0
    for seed in range(20):
        for depth in (0.0, 0.11):
            rng = np.random.default_rng([seed, 7])
            law = HEALTHY["restless"](rng)
            law = replace(law, level=rise(np.linspace(0, 1, law.step.size)))
            curve = draw_curve(law, rng, (Planted(40, 60, depth, "v"),))
            known = (curve.step, curve.accuracy, None, curve.correct)
            falls = len(find_dips(*known)) + len(find_drift(*known)) > 0
            found += falls and depth > 0
            healthy_found += falls and depth == 0
    assert found >= 16
    assert healthy_found <= 2


def test_restless_healthy_runs_drift_no_more_than_stated() -> None:
    def alarms() -> Iterator[bool]:
        for seed in range(150):
            curve = healthy("restless", seed)
            yield not find_drift(curve.step, curve.accuracy, correct=curve.correct).empty

    assert rarely(alarms(), 0.01, 150)


def test_outliers_are_no_drift() -> None:
    """Six single evaluations far below, of which several may lie in one level."""
    drifts = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        accuracy = 0.6 + 0.004 * rng.normal(size=100)
        low = 8 + 5 * rng.choice(17, 6, replace=False)
        accuracy[low] -= 0.15
        drifts.append(len(find_drift(np.arange(100), accuracy)))
    assert sum(drifts) <= 2
