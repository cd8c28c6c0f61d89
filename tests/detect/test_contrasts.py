"""The scan of windows against brute-force oracles of its definition."""

import numpy as np
import pytest

from stabkit.detect import contrasts
from stabkit.detect.contrasts import ar1_error, reference, scan, weights_of


def brute_force(values: np.ndarray, start: int, stop: int) -> float:
    """Return the depth of one window, from the words of the module's docstring alone."""
    size, width = values.size, stop - start
    longest = max(3, min(12, max(4, width)))
    before = values[max(0, start - longest) : start]
    at_before = np.arange(start)[-before.size :].mean()
    middle = np.arange(start, stop).mean()
    inside = values[start:stop].mean()
    if stop == size:
        return before.mean() - inside
    after = values[stop : stop + longest]
    at_after = np.arange(stop, size)[: after.size].mean()
    across = (after.mean() - before.mean()) / (at_after - at_before)
    line = before.mean() + across * (middle - at_before)
    earlier = np.polyfit(np.arange(10), values[start - 10 : start], 1)[0] if start >= 10 else 0.0
    slope = max(0.0, min(across, earlier))
    carried = before.mean() + slope * min(middle - at_before, 6)
    return min(line, carried) - inside


@pytest.mark.parametrize("size", [8, 13, 40, 90])
def test_depths_are_those_of_the_definition(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).cumsum()
    windows = scan(values, 0.0)
    expected = [brute_force(values, a, b) for a, b in zip(windows.start, windows.stop, strict=True)]
    np.testing.assert_allclose(windows.depth, expected, atol=1e-9)
    assert {(a, b) for a, b in zip(windows.start, windows.stop, strict=True)} >= {
        (a, a + 2) for a in range(3, size - 4)
    }, "every pair of evaluations that has three on either side is a window"
    assert set(windows.stop[windows.stop == size] - windows.start[windows.stop == size]) == set(
        range(2, size - 2)
    ), "and every stretch to the end"


def test_error_is_the_quadratic_form_of_the_ar1_covariance() -> None:
    rng = np.random.default_rng(0)
    for ar in (0.0, 0.3, 0.8):
        weights = rng.normal(size=17)
        lag = np.abs(np.subtract.outer(np.arange(17), np.arange(17)))
        assert ar1_error(weights, ar) == pytest.approx(np.sqrt(weights @ ar**lag @ weights))


def test_z_of_pure_noise_is_standard_normal() -> None:
    """The depth against the line, where the other reference does not bind: a straight window."""
    rng = np.random.default_rng(1)
    weights = weights_of(40, 15, 20)
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
    windows = scan(curve, 0.0)
    assert not np.any((windows.depth > 1e-9) & (windows.fall > 1e-9))


def test_a_fall_is_the_largest_drop_between_neighboring_means() -> None:
    values = np.full(30, 1.0)
    values[12:16] = 0.0
    windows = scan(values, 0.0)
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
    windows = scan(values, 0.0)
    for i in rng.integers(0, windows.start.size, 200):
        a, b = int(windows.start[i]), int(windows.stop[i])
        line = reference(values, a, b)
        if b == 60:
            assert np.ptp(line) == 0
        middle_of_flank = a - (min(a, max(4, min(12, b - a))) + 1) / 2
        if b - 1 - middle_of_flank <= contrasts.CARRIED:
            below = line[a:b].mean() - values[a:b].mean()
            assert below == pytest.approx(windows.depth[i], abs=1e-9)
