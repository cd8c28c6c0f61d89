"""The scan of windows against brute-force oracles of its definition."""

import numpy as np
import pytest

from stabkit.detect import dip_windows
from stabkit.detect.dip_windows import ar1_error, reference, scan, weights_of


def brute_force(values: np.ndarray, time: np.ndarray, start: int, stop: int) -> float:
    """Return the depth of one window, from the words of the module's docstring alone."""
    size, width = values.size, stop - start
    longest = max(3, min(12, max(4, width)))
    before = slice(max(0, start - longest), start)
    after = slice(stop, stop + longest)
    level, inside = values[before].mean(), values[start:stop].mean()
    if stop == size:
        return level - inside
    at_before, at_after = time[before].mean(), time[after].mean()
    ahead = time[start:stop].mean() - at_before
    across = (values[after].mean() - level) / (at_after - at_before)
    last = slice(start - 10, start)
    earlier = np.polyfit(time[last], values[last], 1)[0] if start >= 10 else 0.0
    slope = max(0.0, min(across, earlier))
    given_by = min(start, 10) - 1  # gaps between the evaluations that give the slope
    reach = 6 * (time[start - 1] - time[start - 1 - given_by]) / given_by
    return min(level + across * ahead, level + slope * min(ahead, reach)) - inside


def grid(size: int, even: bool) -> np.ndarray:
    gaps = np.full(size, 25) if even else np.random.default_rng(size).integers(1, 60, size)
    return np.cumsum(gaps).astype(float)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("size", [8, 13, 40, 90])
def test_depths_are_those_of_the_definition(size: int, even: bool) -> None:
    values, time = np.random.default_rng(size).normal(size=size).cumsum(), grid(size, even)
    windows = scan(values, time, np.ones(size), 0.0)
    ends = list(zip(windows.start, windows.stop, strict=True))
    expected = [brute_force(values, time, a, b) for a, b in ends]
    np.testing.assert_allclose(windows.depth, expected, atol=1e-9)
    assert set(ends) >= {(a, a + 2) for a in range(3, size - 4)}, (
        "every pair of evaluations that has three on either side is a window"
    )
    assert set(windows.stop[windows.stop == size] - windows.start[windows.stop == size]) == set(
        range(2, size - 2)
    ), "and every stretch to the end"


@pytest.mark.parametrize("ar", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("even", [True, False])
def test_a_standard_error_is_that_of_the_windows_weights(even: bool, ar: float) -> None:
    rng = np.random.default_rng(3)
    values, time, noise = rng.normal(size=60), grid(60, even), rng.uniform(0.5, 2, 60)
    windows = scan(values, time, noise, ar)
    for i in rng.integers(0, windows.start.size, 100):
        weights = weights_of(time, int(windows.start[i]), int(windows.stop[i]))
        size = np.sqrt(np.mean(noise[weights != 0] ** 2))
        assert windows.depth[i] / windows.z[i] == pytest.approx(size * ar1_error(weights, ar))


def test_a_unit_of_steps_or_of_accuracy_changes_no_window() -> None:
    values, time = np.random.default_rng(4).normal(size=50).cumsum(), grid(50, even=False)
    noise = np.ones(50)
    one, other = scan(values, time, noise, 0.5), scan(5 * values, 1000 * time + 7, 5 * noise, 0.5)
    np.testing.assert_allclose(one.z, other.z, atol=1e-9)
    np.testing.assert_allclose(one.fall, other.fall, atol=1e-9)


def test_error_is_the_quadratic_form_of_the_ar1_covariance() -> None:
    rng = np.random.default_rng(0)
    for ar in (0.0, 0.3, 0.8):
        weights = rng.normal(size=17)
        lag = np.abs(np.subtract.outer(np.arange(17), np.arange(17)))
        assert ar1_error(weights, ar) == pytest.approx(np.sqrt(weights @ ar**lag @ weights))


def test_z_of_pure_noise_is_standard_normal() -> None:
    """The depth against the line, where the other reference does not bind: a straight window."""
    rng = np.random.default_rng(1)
    weights = weights_of(np.arange(40.0), 15, 20)
    depths = rng.normal(size=(4000, 40)) @ weights
    # 4,000 draws: the standard deviation of a standard deviation is 1 / sqrt(8000) = .011
    assert depths.std() / ar1_error(weights, 0.0) == pytest.approx(1, abs=4 * 0.011)


@pytest.mark.parametrize(
    "curve",
    [
        np.linspace(0, 1, 80),
        1 - np.exp(-np.arange(80) / 20),
        np.exp(np.arange(80) / 40),
        1 / (1 + np.exp(-(np.arange(80) - 40) / 6)),
    ],
    ids=["straight", "concave", "convex", "sigmoid"],
)
def test_no_window_of_a_smooth_rising_curve_falls_into_a_depth(curve: np.ndarray) -> None:
    """None is both deep and begun by a fall, whatever noise the two would be measured by."""
    windows = scan(curve, np.arange(80.0), np.ones(80), 0.0)
    assert not np.any((windows.depth > 1e-9) & (windows.fall > 1e-9))


def test_a_fall_is_the_largest_drop_between_neighboring_means() -> None:
    values = np.full(30, 1.0)
    values[12:16] = 0.0
    windows = scan(values, np.arange(30.0), np.ones(30), 0.0)
    at = np.flatnonzero((windows.start == 12) & (windows.stop == 16))[0]
    drops = [
        (values[k - e : k].mean() - values[k : k + e].mean()) / np.sqrt(2 / e)
        for e in (1, 2, 3, 5)
        for k in range(10, 15)
    ]
    assert windows.fall[at] == pytest.approx(max(drops))


def test_the_reference_line_gives_the_depth_of_its_window() -> None:
    rng = np.random.default_rng(2)
    values = np.linspace(0, 3, 60) + 0.1 * rng.normal(size=60)
    values[30:36] -= 1
    time = np.arange(60.0)
    windows = scan(values, time, np.ones(60), 0.0)
    for i in rng.integers(0, windows.start.size, 200):
        a, b = int(windows.start[i]), int(windows.stop[i])
        line = reference(values, time, a, b)
        if b == 60:
            assert np.ptp(line) == 0
        middle_of_flank = a - (min(a, max(4, min(12, b - a))) + 1) / 2
        if b - 1 - middle_of_flank <= dip_windows.CARRIED:
            below = line[a:b].mean() - values[a:b].mean()
            assert below == pytest.approx(windows.depth[i], abs=1e-9)
