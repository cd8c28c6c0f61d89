"""Losses that climb for long and come back, as no spike does."""

import math

import numpy as np
import pytest

from stabkit.detect import find_departure, find_long_rises
from stabkit.detect.spikes import COLUMNS

T = np.arange(2000)
HEALTHY = 0.2 + 2 * np.exp(-T / 300)


def drawn(level: np.ndarray, seed: int = 0) -> np.ndarray:
    """Give a level noise of 10 %."""
    return level * np.exp(0.1 * np.random.default_rng(seed).normal(size=level.size))


def bump(at: int, width: int, times: float) -> np.ndarray:
    """Return a factor that rises evenly in its logarithm to `times` and returns, as a bell."""
    return np.exp(math.log(times) * np.exp(-(((T - at) / width) ** 2)))


@pytest.mark.parametrize("times", [5.0, 1e3, 1e17])
def test_a_slow_climb_that_passes_is_found_where_it_is(times: float) -> None:
    (row,) = find_long_rises(T, drawn(HEALTHY * bump(1000, 150, times))).itertuples()
    assert 550 < row.onset < 950
    assert abs(row.peak - 1000) < 60
    assert 1050 < row.end < 1450
    # the level falls while the loss climbs, and the median over 101 values flattens the peak
    assert 0.9 * math.log(times) - 1 < math.log(row.ratio) < math.log(times)
    assert row.height > 5


def test_two_climbs_are_two() -> None:
    found = find_long_rises(T, drawn(HEALTHY * bump(600, 60, 8) * bump(1500, 80, 20)))
    assert len(found) == 2
    assert (found["peak"] - [600, 1500]).abs().max() < 40


def test_a_climb_from_the_first_step_that_a_smaller_rate_ends_is_found() -> None:
    """SGD at a rate that is too high: from 2 to 1e13 in 900 steps, then back at once."""
    level = np.where(T < 900, 2 * np.exp(T / 30), HEALTHY)
    (row,) = find_long_rises(T, drawn(level)).itertuples()
    assert row.onset < 100
    assert 850 <= row.end < 950


def test_losses_of_exactly_zero_are_low() -> None:
    """Huge logits give losses of 1e18 and of 0."""
    level = np.where(T < 900, 2 * np.exp(T / 30), 0)
    (row,) = find_long_rises(T, drawn(level)).itertuples()
    assert 850 <= row.end < 950


def test_healthy_losses_have_none() -> None:
    epochs = np.arange(400)
    rate = 0.5 * (1 + np.cos(np.pi * (epochs % 100) / 100))
    restarts = 0.02 + 2.3 * np.exp(-epochs / 20) + 0.12 * rate  # to 7 times at each restart
    for seed in range(20):
        assert find_long_rises(T, drawn(HEALTHY, seed)).empty
        assert find_long_rises(epochs, drawn(restarts, seed)).empty


def test_one_that_does_not_come_back_is_a_departure_alone() -> None:
    loss = drawn(HEALTHY * np.where(T < 1500, 1, 6))
    assert find_long_rises(T, loss).empty
    assert len(find_departure(T, loss)) == 1


def test_a_spike_of_a_few_steps_is_no_long_rise() -> None:
    loss = drawn(HEALTHY)
    loss[1000:1010] *= 50
    assert find_long_rises(T, loss).empty


@pytest.mark.parametrize(
    "loss", [np.ones(5), HEALTHY - 1, np.full(2000, np.nan), np.ones(2000), np.zeros(2000)]
)
def test_short_negative_and_constant_series_have_none(loss: np.ndarray) -> None:
    found = find_long_rises(np.arange(len(loss)), loss)
    assert found.empty
    assert list(found) == list(COLUMNS)


def test_medians_of_few_values_do_not_hide_the_noise() -> None:
    """Each value is one of the five of its median, so it lies nearer to it than to the level."""
    t, runs = np.arange(50), 1000
    drawn_flat = (np.random.default_rng(seed).normal(size=50) for seed in range(runs))
    alarms = sum(len(find_departure(t, np.exp(0.2 * e))) for e in drawn_flat)
    assert alarms <= 0.01 * runs


@pytest.mark.parametrize("size", [200, 999, 5000, 20_000])
@pytest.mark.parametrize("share", [0.06, 0.09])
@pytest.mark.parametrize("evenly", [True, False])
def test_a_loss_that_explodes_in_its_last_tenth_is_found(
    size: int, share: float, evenly: bool
) -> None:
    """People stop such runs, so most of them end so."""
    t = np.arange(size)
    late = np.clip((t - (1 - share) * size) / (share * size), 0, None)
    climb = 1 + 99 * late if evenly else np.exp(math.log(100) * late)
    values = drawn((0.2 + 2 * np.exp(-6 * t / size)) * climb)
    assert find_departure(t, values).empty
    (row,) = find_long_rises(t, values).itertuples()
    assert row.end == size - 1
    assert row.onset > (1 - share) * size - 0.05 * size


@pytest.mark.parametrize(("size", "width", "times"), [(20_000, 500, 30.0), (100_000, 2_000, 1e3)])
def test_a_climb_that_is_short_for_a_long_run_is_found(size: int, width: int, times: float) -> None:
    t = np.arange(size)
    off = t - size // 2
    hill = np.where(abs(off) < width // 2, np.cos(np.pi * off / width) ** 2, 0)
    values = drawn((0.2 + 2 * np.exp(-6 * t / size)) * np.exp(math.log(times) * hill))
    (row,) = find_long_rises(t, values).itertuples()
    assert abs(row.peak - size // 2) < width / 4


@pytest.mark.parametrize("size", [13, 20, 50, 200, 5000])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_noise_is_seldom_a_rise_or_a_departure(size: int, noise: float) -> None:
    t, runs, alarms = np.arange(size), 300 if size < 1000 else 30, 0
    for seed in range(runs):
        e = np.random.default_rng([size, seed]).normal(size=size)
        values = (0.2 + 2 * np.exp(-6 * t / size)) * np.exp(noise * e)
        alarms += len(find_departure(t, values)) + len(find_long_rises(t, values)) > 0
    assert alarms <= 0.01 * runs


@pytest.mark.parametrize("size", [60, 200, 500])
def test_a_loss_that_is_0_at_times_rises_only_beyond_its_scatter(size: int) -> None:
    """A triplet or hinge loss; the ratio to its smallest value above 0 means nothing."""
    t, alarms, found, runs = np.arange(size), 0, 0, 40
    level = 0.4 * (1 + t / 10) ** -0.35 - 0.04
    for seed in range(runs):
        noise = 0.12 * np.random.default_rng(seed).normal(size=size)
        alarms += len(find_long_rises(t, np.maximum(0, level + noise))) > 0
        rises = np.where(abs(t - 0.6 * size) < 0.1 * size, 0.8, 0)
        found += len(find_long_rises(t, np.maximum(0, level + rises + noise))) > 0
    assert alarms <= 0.03 * runs
    assert found >= 0.9 * runs
