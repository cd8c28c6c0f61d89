"""The simulator makes what it says, or no calibration on it means anything."""

import numpy as np
import pytest

from stabkit.detect.simulate import TRENDS, Planted, ar1, simulate_curve, simulate_norms


@pytest.mark.parametrize("trend", TRENDS)
def test_accuracy_follows_the_trend(trend: str) -> None:
    """Mean of 40 runs of 1,000 samples: difficulty draws alone scatter by sqrt(.25 / 40,000)."""
    runs = [
        simulate_curve(np.random.default_rng(k), trend=trend, evals=50).accuracy for k in range(40)
    ]
    level = TRENDS[trend](np.arange(50) / 49)
    # Near 0 and 1 a sample's own noise pushes the answers towards the middle: by .03 at most.
    np.testing.assert_allclose(np.mean(runs, axis=0), level, atol=4 * 0.0025 + 0.03)


def test_flips_are_as_many_as_asked_for() -> None:
    for flips in (0.05, 0.1):
        rng = np.random.default_rng(0)
        curve = simulate_curve(rng, n=20_000, trend="flat", noise=0.0, flips=flips)
        changed = np.mean(curve.correct[1:] != curve.correct[:-1])
        assert changed == pytest.approx(flips, rel=0.05)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9])
def test_ar1_noise_has_its_variance_and_autocorrelation(coefficient: float) -> None:
    noise = ar1(np.random.default_rng(1), 50, coefficient, 20_000)
    assert noise.std(axis=1) == pytest.approx(1, abs=0.03), "stationary from the first value on"
    lag = np.mean(noise[1:] * noise[:-1])
    assert lag == pytest.approx(coefficient, abs=0.01)


@pytest.mark.parametrize("shape", ["box", "v", "sawtooth"])
def test_a_planted_dip_is_as_deep_and_as_long_as_asked_for(shape: str) -> None:
    planted = (Planted(20, 8, 0.1, shape),)  # type: ignore[arg-type]
    curves = [
        simulate_curve(np.random.default_rng(4), evals=60, trend="flat", n=20_000, planted=p)
        for p in ((), planted)
    ]
    below = curves[0].accuracy - curves[1].accuracy
    assert np.all(below[20:28] > 0)
    assert np.all(np.delete(below, np.arange(20, 28)) == 0)
    assert below.max() == pytest.approx(0.1 if shape != "v" else 0.1 * 7 / 8, abs=0.01)


def test_what_is_lasting_stays() -> None:
    planted = (Planted(20, 5, 0.1, lasting=0.4),)
    healthy, hurt = (
        simulate_curve(np.random.default_rng(4), evals=60, trend="flat", n=20_000, planted=p)
        for p in ((), planted)
    )
    assert np.mean((healthy.accuracy - hurt.accuracy)[25:]) == pytest.approx(0.04, abs=0.004)


def test_norms_have_their_scatter_and_their_spikes() -> None:
    log = np.log(simulate_norms(np.random.default_rng(0), steps=20_000, sigma=0.3))
    assert log.std() == pytest.approx(0.3, rel=0.02)
    spiked, plain = (
        simulate_norms(np.random.default_rng(1), steps=300, spikes=s)
        for s in (((100, 8.0, 4),), ())
    )
    ratio = spiked / plain
    assert ratio[100] == pytest.approx(8)
    assert ratio[98] == pytest.approx(8**0.5)
    assert np.all(ratio[[*range(97), *range(104, 300)]] == 1)
