"""Bursts of layers stand out from the tail of the layers' own noise, or do not."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from stabkit.detect.joint_spikes import find_layer_spikes
from stabkit.detect.layer_tails import (
    MOST_EXPECTED,
    SHAPE,
    SHORTEST,
    _heights,
    bursts_that_stand_out,
    tail_bar,
)
from stabkit.detect.simulate import Burst, layers

ALL = (0,) * 11
Series = list[tuple[NDArray[np.int64], NDArray[np.float64]]]


def drawn(seed: int, *bursts: Burst, name: str = "real_lr016", steps: int = 500, **law) -> Series:
    norms = layers(seed, bursts, name=name, steps=steps, **law).norms
    return [(np.arange(steps), column) for column in norms.T]


def standing_out(series: Series) -> set[int]:
    """Return the steps at which spikes that stand out are flagged in any layer."""
    return those_that_stand_out(series, find_layer_spikes(series))


def those_that_stand_out(series: Series, spikes: list[pd.DataFrame]) -> set[int]:
    kept = bursts_that_stand_out(series, spikes)
    found = [rows["flagged"][counts] for rows, counts in zip(spikes, kept, strict=True)]
    return {int(step) for steps in found for step in steps}


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("name", "steps", "together"),
    [("skewed", 62, 0.9), ("t5", 500, 0.9), ("t5", 3_000, 0.6), ("skewed", 3_000, 0.6)],
)
def test_the_largest_values_of_healthy_noise_seldom_stand_out(
    name: str, steps: int, together: float
) -> None:
    seeds = range(max(20, 6_000 // steps))
    runs = [drawn(seed, name=name, steps=steps, together=together) for seed in seeds]
    spikes = [find_layer_spikes(series) for series in runs]
    assert sum(any(map(len, found)) for found in spikes) >= 3  # without the rule, they have bursts
    assert sum(bool(those_that_stand_out(*both)) for both in zip(runs, spikes, strict=True)) <= 1


@pytest.mark.parametrize("at", [40, 300])
@pytest.mark.parametrize("steps", [360, 4_000])
def test_a_large_burst_stands_out_however_long_the_run_is(at: int, steps: int) -> None:
    for burst in (
        Burst(at, 17.0, tuple(i // 2 for i in range(11)), 3, 10.0),  # travels through the layers
        Burst(at, 200.0, ALL),
        Burst(at, 200.0, (0, *[None] * 10)),
    ):
        found = standing_out(drawn(3, burst, steps=steps))
        assert any(at <= step <= at + 8 for step in found)
        assert all(at <= step <= at + 60 for step in found)


def test_a_burst_at_the_first_and_at_the_last_steps_stands_out() -> None:
    for at in (14, 497):
        found = standing_out(drawn(5, Burst(at, 30.0, ALL, lasts=3), name="falls 10x in 40"))
        assert found
        assert all(at <= step <= at + 2 for step in found)


@pytest.mark.parametrize("every", [1, 2])
def test_all_layers_of_a_burst_stand_out_or_none_does(every: int) -> None:
    """The layer with a small spike may have been measured at other steps."""
    series = drawn(8, Burst(300, 12.0, (0, 0, 0, *[None] * 8)), name="AR .5")
    series[5] = series[5][0][::every], series[5][1][::every]
    spikes = find_layer_spikes(series)
    assert len(spikes[0]) == 1
    spikes[5] = spikes[0].assign(onset=298, flagged=298, peak=298, end=298)
    assert all(counts.all() for counts in bursts_that_stand_out(series, spikes))
    alone = [rows if i == 5 else rows.iloc[:0] for i, rows in enumerate(spikes)]
    assert not bursts_that_stand_out(series, alone)[5].any()


def test_a_shift_of_the_level_is_no_burst() -> None:
    series = drawn(2, name="falls 10x in 40", steps=600)
    shifted = [(steps, np.where(steps >= 400, 3, 1) * values) for steps, values in series]
    assert any(map(len, find_layer_spikes(shifted)))
    assert standing_out(shifted) == set()


def test_layers_measured_at_other_steps_are_judged_by_themselves() -> None:
    series = drawn(4, Burst(300, 20.0, ALL), name="falls 10x in 40")
    sparse = [(steps[::2], values[::2]) for steps, values in series[:4]]
    few = (np.arange(280, 305), series[0][1][280:305])
    mixed = [*sparse, *series[4:], few]
    spikes = find_layer_spikes(mixed)
    kept = bursts_that_stand_out(mixed, spikes)
    assert [len(counts) for counts in kept] == [len(rows) for rows in spikes]
    assert len(few[0]) < SHORTEST
    assert all(counts.all() and counts.size for counts in kept)


def test_without_spikes_nothing_is_judged() -> None:
    series = drawn(1)
    nothing = [find_layer_spikes([(np.arange(20), np.ones(20))])[0] for _ in series]
    assert [counts.tolist() for counts in bursts_that_stand_out(series, nothing)] == [[]] * 11


def test_the_bar_is_met_as_often_as_it_says() -> None:
    """In noise with the tail that is assumed, and in noise with a shorter one."""
    rng = np.random.default_rng(1)
    size = 2_000
    pareto = ((rng.random((2_000, size)) ** -SHAPE) - 1) / SHAPE
    chance = MOST_EXPECTED / size
    above = [int((row > tail_bar(row, chance)).sum()) for row in pareto]
    assert np.mean(above) == pytest.approx(MOST_EXPECTED, abs=0.015)
    assert tail_bar(pareto[0, : SHORTEST - 1], chance) == np.inf, "not known"
    normal = rng.standard_normal((2_000, size))
    assert np.mean([(row > tail_bar(row, chance)).any() for row in normal]) <= 0.002


def test_heights_are_distances_from_the_median_around() -> None:
    rng = np.random.default_rng(2)
    logs = rng.standard_normal((2, 300)).cumsum(axis=1)
    usual = rng.random(300) < 0.9
    heights = _heights(logs, usual)
    level = [
        [np.median(row[max(0, t - min(50, t)) : t + min(50, t) + 1]) for t in range(300)]
        for row in logs
    ]
    off = np.abs(logs - level)
    for t in (3, 40, 150, 270, 299):
        near = np.arange(max(0, t - 50), min(300, t + 51))
        noise = 1.4826 * np.median(off[:, near[usual[near]]], axis=1)
        assert heights[:, t] * noise == pytest.approx((logs - level)[:, t])


def test_a_burst_in_the_first_steep_fall_stands_out() -> None:
    burst = Burst(40, 10.0, ALL, tail=10.0)
    assert sum(bool(standing_out(drawn(seed, burst))) for seed in range(8)) >= 7


@pytest.mark.parametrize("steps", [200, 2_000])
@pytest.mark.parametrize("alone", [True, False])
def test_a_level_that_rises_a_hundredfold_for_good_is_a_burst(steps: int, alone: bool) -> None:
    """The level around it rises too, so no height shows it."""
    rng = np.random.default_rng(steps)
    at = steps // 2
    rise = np.where(np.arange(steps) >= at, 100.0, 1.0)
    drawn_once = [np.exp(0.2 * rng.standard_normal(steps)) for _ in range(1 if alone else 4)]
    found = standing_out([(np.arange(steps), rise * values) for values in drawn_once])
    assert found
    assert all(at <= step <= at + 20 for step in found)


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("name", ["grows", "warms up"])
def test_a_level_that_grows_from_the_first_step_on_is_no_burst(name: str, power: int) -> None:
    """As where the last layer begins at zero, or in a warm-up."""
    rng = np.random.default_rng(power)
    for _ in range(10):
        t = np.arange(1, 301)
        level = t**power if name == "grows" else 10.0 ** (power * np.minimum(t / 30, 1))
        noise = [np.exp(0.1 * rng.standard_normal(300)) for _ in range(4)]
        assert standing_out([(t, level * values) for values in noise]) == set()


def test_norms_that_were_printed_with_one_digit_left_hold_no_burst() -> None:
    # Of values around .05, half of those around one are .05 too: their scatter shows as none.
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=2000)
        norms = 0.05 * (1 + 3 * np.exp(-np.arange(2000) / 40)) * np.exp(0.15 * noise)
        series = [(np.arange(2000), np.round(norms, 2))]
        assert len(standing_out(series)) <= 1
        series[0][1][1200] = 3
        # The spike may begin with rounded values before it.
        assert any(1000 < flagged <= 1200 for flagged in standing_out(series))
