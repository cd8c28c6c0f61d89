"""The local noise against a plain loop of its definition, and on noise that changes."""

import numpy as np
import pytest

from stabkit.detect import find_dips
from stabkit.detect.local_noise import (
    LEAST_AR,
    difference_noise,
    flip_variances,
    local_noise,
    noise_outside,
)
from stabkit.detect.robust import residual_scale, two_sided_residual
from stabkit.detect.simulate.noise import ar1
from stabkit.detect.simulate.scenarios import healthy


def median_around(values: np.ndarray, over: int) -> list[float]:
    """Return the median of `over` values around each; beyond the ends the last value goes on."""
    padded = np.pad(values, over // 2, mode="edge")
    return [float(np.median(padded[i : i + over])) for i in range(values.size)]


def plain_loop(values: np.ndarray, variances: np.ndarray) -> list[float]:
    """Return the noise of all evaluations but the two ends."""
    residual = two_sided_residual(values)
    shape = np.sqrt(median_around(variances, 9))[1:-1]
    ratio = (residual - np.median(residual)) / shape
    scale, shown, _ = residual_scale(ratio)
    near = median_around(np.abs(ratio), 21)
    out = []
    for i in range(ratio.size):
        squares = [
            (ratio[j] / 0.9866) ** 2
            for j in range(max(0, i - 20), min(ratio.size, i + 21))
            if 0 < ratio[j] <= 3 * max(scale, 1.4826 * near[j])
        ]
        size = np.sqrt((sum(squares) + 20 * scale**2) / (len(squares) + 20))
        out.append(float(shape[i] * size / shown))
    return out


def test_it_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    values = 0.5 + 0.01 * ar1(rng, 100, 0.5)[:, 0]
    variances = rng.uniform(0.5, 2, 100) * 1e-4
    noise, ar = local_noise(values, variances)
    np.testing.assert_allclose(noise[1:-1], plain_loop(values, variances), rtol=1e-9)
    assert ar >= LEAST_AR


def test_flips_are_those_of_neighbors() -> None:
    bits = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]], dtype=bool)
    # Two of four flip, then none, which counts as half an answer.
    np.testing.assert_allclose(flip_variances(bits), np.array([2, 2, 0.5]) / 16)


@pytest.mark.parametrize("known", [True, False])
def test_it_follows_noise_that_falls_tenfold(known: bool) -> None:
    rng, falls = np.random.default_rng(1), np.geomspace(0.02, 0.002, 100)
    variances = (falls / 2) ** 2 if known else None  # the shape; the residuals tell the size
    ratios = []
    for _ in range(40):
        noise, _ = local_noise(0.5 + falls * rng.normal(size=100), variances)
        ratios.append(noise / falls)
    # 40 runs with one estimate each that scatters by .2: .03. Without flips the ends lag behind.
    middle, ends = np.mean(ratios, axis=0)[20:80], np.mean(ratios, axis=0)[[5, 94]]
    np.testing.assert_allclose(middle, 1, atol=0.1 if known else 0.3)
    np.testing.assert_allclose(ends, 1, atol=0.1 if known else 0.9)


def test_accuracy_in_other_units_has_noise_in_those_units() -> None:
    rng = np.random.default_rng(2)
    values, variances = rng.normal(size=60), rng.uniform(0.5, 2, 60)
    for shape in (variances, None):
        one, ar = local_noise(values, shape)
        ten, same = local_noise(10 * values + 3, shape)
        np.testing.assert_allclose(ten, 10 * one, rtol=1e-6)
        assert ar == pytest.approx(same)
        np.testing.assert_allclose(
            difference_noise(10 * values, shape), 10 * difference_noise(values, shape), rtol=1e-6
        )


def test_dips_do_not_become_the_noise_that_hides_them() -> None:
    rng, variances = np.random.default_rng(3), np.full(100, 1e-4)
    calm, dipped = [], []
    for _ in range(40):
        values = 0.5 + 0.01 * rng.normal(size=100)
        calm.append(local_noise(values, variances)[0].mean())
        values[20::12] -= 0.05
        values[21::12] -= 0.05
        dipped.append(local_noise(values, variances)[0].mean())
    assert np.mean(dipped) < 1.3 * np.mean(calm)  # a plain standard deviation grows 1.9 times


def test_the_noise_inside_a_dip_is_that_around_it() -> None:
    rng = np.random.default_rng(4)
    values, variances = 0.5 + 0.01 * rng.normal(size=80), np.full(80, 1e-4)
    outside = np.ones(80, dtype=bool)
    outside[30:40] = False
    noise, _ = noise_outside(values, variances, outside)
    values[30:40] -= 0.3
    np.testing.assert_array_equal(noise, noise_outside(values, variances, outside)[0])
    assert noise_outside(values, None, np.zeros(80, dtype=bool))[0].tolist() == [0.0] * 80


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5])
def test_short_or_constant_series_have_no_noise(size: int) -> None:
    values = np.full(size, 0.5)
    for variances in (None, np.ones(size)):
        assert local_noise(values, variances)[0].tolist() == [0.0] * size
        assert difference_noise(values, variances).tolist() == [0.0] * size


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["noise falls, independent", "noise falls", "real_lr004"])
def test_runs_whose_noise_falls_do_not_alarm(name: str) -> None:
    """With one noise for the whole run 10 to 25 of these 60 alarmed."""
    alarms = 0
    for seed in range(60):
        run = healthy(name, seed)
        alarms += not find_dips(run.step, run.accuracy, correct=run.correct).empty
    assert alarms <= 3  # at 1 %: 3 or more in one case of 50


def test_one_evaluation_has_a_variance_and_no_noise() -> None:
    variances = flip_variances(np.ones((1, 100), dtype=bool))
    assert variances.tolist() == [0.5 / 100**2]
    noise, _ = noise_outside(np.array([1.0]), variances, np.array([True]))
    assert noise.tolist() == [0.0]


def test_a_wandering_trend_makes_noise_no_slower_than_recorded_runs_have() -> None:
    walk = 0.5 + 0.01 * np.cumsum(np.random.default_rng(3).normal(size=200))  # its coefficient is 1
    variances = np.full(200, 1e-4)
    residual = two_sided_residual(walk)
    _, shown, estimate = residual_scale(residual - np.median(residual))
    assert estimate > 0.8, "the subject: an estimate above the most"
    noise, capped = local_noise(walk, variances)
    assert capped == 0.8
    # The residuals show .69 of noise whose coefficient is .8.
    expected = np.array(plain_loop(walk, variances)) * shown / 0.69
    np.testing.assert_allclose(noise[1:-1], expected, rtol=1e-9)


def test_values_left_out_have_the_larger_noise_of_both_sides() -> None:
    """As in a dip just before a drop of the learning rate, where the noise falls."""
    values = 0.5 + np.repeat([0.03, 0.003], 60) * np.random.default_rng(0).normal(size=120)
    outside = np.ones(120, dtype=bool)
    outside[54:60] = False
    noise, _ = noise_outside(values, None, outside)
    assert noise[53] > 5 * noise[75]
    assert np.all(noise[54:60] == noise[53])
