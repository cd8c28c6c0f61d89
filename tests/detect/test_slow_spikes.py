"""Spikes of a loss that rise and fall over tens of values."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from stabkit.detect import find_spikes
from stabkit.detect.slow_spikes import find_slow_spikes


def loss(seed: int, size: int, sigma: float = 0.03, rho: float = 0.0) -> NDArray[np.float64]:
    """Return a loss that falls as that of a language model, with AR(1) noise of `sigma`."""
    at = np.arange(size)
    noise = lfilter([1], [1, -rho], np.random.default_rng(seed).normal(size=size))
    level = 2.6 + 8 * np.exp(-at / 30) + 2 * (1 + at / 10) ** -0.45
    return np.asarray(level * np.exp(sigma * np.sqrt(1 - rho**2) * noise))


def hump(size: int, begin: int, rise: int, ratio: float) -> NDArray[np.float64]:
    """Return a factor that rises over `rise` values from `begin` on, and falls as slowly."""
    at = np.arange(size) - begin
    return 1 + (ratio - 1) * np.clip(np.minimum(at / rise, 2 - at / rise), 0, None)


@pytest.mark.parametrize(("size", "rise"), [(2_000, 40), (5_000, 40), (20_000, 150)])
def test_a_loss_that_rises_by_half_over_many_values_is_found(size: int, rise: int) -> None:
    found = alone = 0
    for seed in range(10):
        steps, values = 10 * np.arange(size), loss(seed, size)
        values *= hump(size, size // 2, rise, 1.5)
        rows = find_slow_spikes(steps, values)
        begin, end = 5 * size, 5 * size + 20 * rise
        inside = rows["onset"].between(begin - 640, begin + 10 * rise) & (rows["end"] <= end + 640)
        found += bool(inside.any() and len(rows) == 1)
        alone += bool((find_spikes(steps, values)["ratio"] > 1.3).any())
    assert found >= 9
    assert alone <= 5


@pytest.mark.lengthy
@pytest.mark.parametrize("rho", [0.0, 0.9, 0.98])
@pytest.mark.parametrize("size", [2_000, 20_000])
def test_healthy_losses_have_none(size: int, rho: float) -> None:
    for seed in range(20):
        assert find_slow_spikes(np.arange(size), loss(seed, size, 0.03, rho)).empty


def test_the_end_is_the_last_step_of_the_last_mean() -> None:
    steps, values = 10 * np.arange(2_000), loss(0, 2_000, 0.01)
    values[1_000:1_080] *= 1.5
    (row,) = find_slow_spikes(steps, values).itertuples()
    assert (row.onset, row.end) == (10_000, 10_790)
    assert row.ratio == pytest.approx(1.5, rel=0.03)


def test_a_series_of_few_values_has_none() -> None:
    values = loss(0, 1_199) * hump(1_199, 600, 40, 3.0)
    assert find_slow_spikes(np.arange(1_199), values).empty
