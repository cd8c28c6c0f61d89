"""Scenarios look like the recorded runs they come from, and hold what is planted in them."""

import numpy as np
import pytest

from stabkit.detect.simulate import (
    DIP_MIX,
    HEALTHY,
    LONG,
    NORMS,
    REALISTIC,
    Burst,
    Planted,
    Spike,
    healthy,
    layers,
    norms,
)
from stabkit.detect.simulate.planted import loss_of
from stabkit.detect.simulate.recorded import measure_accuracy, measure_norms, recorded

QUICK = [name for name in HEALTHY if name not in LONG]


@pytest.mark.lengthy
@pytest.mark.parametrize("name", REALISTIC)
def test_a_realistic_run_has_the_noise_and_the_flips_of_the_recorded_one(name: str) -> None:
    """Recorded values come from 25 evaluations each, and hold what the run wandered slowly."""
    curves = [healthy(name, seed) for seed in range(40)]
    measured = [measure_accuracy(c.accuracy, c.correct) for c in curves]
    stored = recorded()[name].quarters

    def median(field: str) -> np.ndarray:
        return np.median([getattr(m, field) for m in measured], axis=0)

    np.testing.assert_allclose(median("flips"), stored.flips, rtol=0.1, atol=0.005)
    np.testing.assert_allclose(median("flips_apart"), stored.flips_apart, rtol=0.1, atol=0.005)
    ratio = median("noise") / stored.noise
    assert np.all((ratio > 0.5) & (ratio < 1.6))
    assert np.exp(np.mean(np.log(ratio))) == pytest.approx(1, abs=0.25)
    # Simulated noise forgets sooner: slow wandering of a run is not told from its trend.
    assert -0.05 < np.mean(stored.ar) - median("ar").mean() < 0.4
    assert median("noise")[0] > 1.9 * median("noise")[3], "noise falls as it does in real runs"


def test_the_restless_run_has_the_noise_and_the_flips_of_the_recorded_one() -> None:
    measured = [measure_accuracy(c.accuracy, c.correct) for c in
                (healthy("restless", seed) for seed in range(40))]  # fmt: skip
    stored = recorded()["restless"].quarters

    def median(field: str) -> np.ndarray:
        return np.median([getattr(m, field) for m in measured], axis=0)

    np.testing.assert_allclose(median("flips"), stored.flips, rtol=0.1)
    np.testing.assert_allclose(median("flips_apart"), stored.flips_apart, rtol=0.1)
    np.testing.assert_allclose(median("noise"), stored.noise, rtol=0.25)
    np.testing.assert_allclose(median("excess"), stored.excess, rtol=0.35)
    assert 0 <= median("ar").mean() - np.mean(stored.ar) < 0.2, "no faster than recorded"


@pytest.mark.parametrize("name", QUICK)
def test_accuracies_are_the_means_of_their_bits_and_seeds_repeat(name: str) -> None:
    curve, again, other = healthy(name, 3), healthy(name, 3), healthy(name, 4)
    assert np.array_equal(curve.accuracy, curve.correct.mean(axis=1))
    assert np.array_equal(curve.correct, again.correct)
    assert not np.array_equal(curve.correct[-1], other.correct[-1])
    assert np.all(np.diff(curve.step) > 0)
    assert curve.step.size == curve.accuracy.size == len(curve.correct)


@pytest.mark.lengthy
def test_many_samples_leave_the_noise_that_all_share() -> None:
    """Half a point with AR .5: the differences of neighbors scatter by .5 points as well."""
    curves = [healthy("t5 shocks", seed, n=20_000) for seed in range(10)]
    rest = np.concatenate([np.diff(np.diff(c.accuracy)) for c in curves])
    # A second difference of AR(1) noise has 6 - 8 a + 2 a^2 = 2.5 times its variance.
    assert rest.std() == pytest.approx(0.005 * 2.5**0.5, rel=0.15)


@pytest.mark.parametrize("name", DIP_MIX)
def test_a_planted_dip_has_its_depth_and_its_place(name: str) -> None:
    """Equal seeds give equal noise, so the difference is the dip; flips scatter by .2 points."""
    planted = DIP_MIX[name]
    base = ("constant", "noise falls", "real_lr016")[list(DIP_MIX).index(name) % 3]
    below = np.mean(
        [
            healthy(base, seed, n=4000).accuracy - healthy(base, seed, planted, n=4000).accuracy
            for seed in range(8)
        ],
        axis=0,
    )
    np.testing.assert_allclose(below, loss_of(below.size, planted), atol=0.008)


def test_a_dip_that_is_lasting_stays() -> None:
    below = (
        healthy("constant", 1).accuracy
        - healthy("constant", 1, (Planted(50, 5, 0.1, lasting=0.4),)).accuracy
    )
    assert below[60:].mean() == pytest.approx(0.04, abs=0.01)


@pytest.mark.parametrize("name", NORMS)
def test_a_planted_spike_has_its_height_growth_and_tail(name: str) -> None:
    spikes = (Spike(100, 8.0, growth=8, tail=20.0), Spike(300, 3.0), Spike(400, 8.0, lasts=10))
    log = np.log(norms(name, 5, spikes) / norms(name, 5)) / np.log(8)
    assert log[99] == pytest.approx(0)
    assert log[100] == pytest.approx(1 / 8)
    assert log[107] == pytest.approx(1)
    assert log[127] == pytest.approx(np.exp(-1), rel=1e-3)
    assert np.exp(np.log(8) * (log[300] - log[299])) == pytest.approx(3, rel=1e-2)
    assert log[400:410] == pytest.approx(1, rel=1e-3)
    assert abs(log[410]) < 1e-3


def test_norms_of_the_recorded_kind_have_its_noise_and_its_fall() -> None:
    stored = recorded()["real_lr004"].norms
    found = [measure_norms(norms("real_lr004", s)[:, None], []) for s in range(10)]
    sigma = np.median([f.sigma for f in found], axis=0)
    np.testing.assert_allclose(sigma, stored.sigma, rtol=0.25)
    fallen = np.median([f.level[0] - f.level[16] for f in found])
    assert fallen == pytest.approx(stored.level[0] - stored.level[16], abs=0.3)


def test_layers_go_together_as_recorded() -> None:
    """Recorded: .65 to .73 at the median, .9 and more for neighboring blocks."""
    rest = np.diff(np.log(layers(2, name="stationary", steps=4000).norms), axis=0)
    r = np.corrcoef(rest.T)
    assert np.median(r[np.triu_indices(len(r), 1)]) == pytest.approx(0.7, abs=0.08)
    assert np.diag(r, 1).mean() == pytest.approx(0.9, abs=0.03)


def test_layers_rise_one_after_the_other_and_with_their_own_noise() -> None:
    noise = (0.5, *[1.0] * 10)
    lags = (0, *[None] * 9, 20)
    plain = layers(2, noise=noise, name="stationary")
    hurt = layers(2, (Burst(200, 6.0, lags),), noise=noise, name="stationary")
    first = [int(np.argmax(column > 1.01)) for column in (hurt.norms / plain.norms).T]
    assert first == [200, *[0] * 9, 220]
    scatter = np.log(plain.norms).std(axis=0)
    assert scatter[0] == pytest.approx(scatter[1:].mean() / 2, rel=0.1)


def test_unknown_names_and_wrong_numbers_of_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="no healthy scenario 'real'; there are constant"):
        healthy("real", 0)
    with pytest.raises(ValueError, match="no scenario of norms 'real'; there are stationary"):
        norms("real", 0)
    with pytest.raises(ValueError, match="2 values for 11 layers"):
        layers(0, noise=(1.0, 2.0))
