"""Spikes that recur throughout a series are its noise; the same spikes elsewhere are not."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from stabkit.detect import find_spikes
from stabkit.detect.joint_spikes import find_layer_spikes
from stabkit.detect.layer_tails import bursts_that_stand_out
from stabkit.detect.loss_tail import spikes_that_stand_out
from stabkit.detect.recurring import (
    expected_beside,
    in_a_row,
    recurring,
    usual_at_its_place,
)

Values = NDArray[np.float64]
RUNS, FEW = 10, 4


def loss(rng: np.random.Generator, size: int, noise: float = 0.03) -> Values:
    """Return a falling loss with normal noise."""
    level = 0.5 + 2 * (1 + np.arange(size) / 10) ** -0.35
    return np.asarray(level * np.exp(noise * rng.standard_normal(size)))


def rate(make: Callable[[np.random.Generator], Values]) -> float:
    """Return the share of losses with a spike that stands out."""
    alarms = 0
    for seed in range(RUNS):
        values = make(np.random.default_rng(seed))
        steps = np.arange(len(values))
        alarms += spikes_that_stand_out(steps, values, find_spikes(steps, values)).any()
    return alarms / RUNS


def burst_rate(make: Callable[[np.random.Generator], list[Values]]) -> float:
    """Return the share of runs whose gradient norms have a burst that stands out."""
    alarms = 0
    for seed in range(FEW):
        layers = [(np.arange(len(v)), v) for v in make(np.random.default_rng(seed))]
        found = bursts_that_stand_out(layers, find_layer_spikes(layers))
        alarms += any(counts.any() for counts in found)
    return alarms / FEW


@pytest.mark.parametrize("size", [200, 900, 3_000])
def test_a_hard_batch_of_each_epoch_is_no_spike_of_a_loss(size: int) -> None:
    hard = np.where(np.arange(size) % 25 == 24, 1.6, 1.0)
    assert rate(lambda rng: hard * loss(rng, size)) <= 0.1


@pytest.mark.parametrize("size", [900, 3_000])
def test_hard_batches_at_random_steps_are_no_spikes_of_a_loss(size: int) -> None:
    """Two of them may be neighbors, or three within a few steps."""

    def drawn(rng: np.random.Generator) -> Values:
        return np.where(rng.random(size) < 0.02, 2.0, 1.0) * loss(rng, size, 0.05)

    assert rate(drawn) <= 0.1


@pytest.mark.parametrize("size", [300, 900, 3_000])
def test_few_late_growing_or_lasting_spikes_are_found(size: int) -> None:
    t = np.arange(size)

    def planted(count: int, begin: float, lasts: int) -> Callable[[np.random.Generator], Values]:
        def make(rng: np.random.Generator) -> Values:
            values = loss(rng, size)
            for at in rng.choice(np.arange(int(begin * size), size - 4), count, replace=False):
                values[at : at + lasts] *= 2
            return values

        return make

    assert rate(planted(1, 0.1, 1)) == rate(planted(5, 0.1, 1)) == 1
    assert rate(planted(10, 0.5, 1)) == 1, "from mid-run on"
    assert rate(planted(8, 0.1, 4)) >= 0.9, "each lasts"
    grows = np.where(t % (size // 12) == size // 12 - 1, 1.3 * 4 ** (t / size), 1)
    assert rate(lambda rng: grows * loss(rng, size)) == 1
    hard = np.where(t % 25 == 24, 1.6, 1.0)
    assert rate(lambda rng: hard * planted(1, 0.1, 4)(rng)) >= 0.5, "among hard batches"


def norms(rng: np.random.Generator, layers: int, size: int) -> list[Values]:
    """Return gradient norms whose noise the layers share for the most part."""
    shared = 0.8 * rng.standard_normal(size)
    return [np.exp(0.1 * (shared + 0.6 * rng.standard_normal(size))) for _ in range(layers)]


@pytest.mark.parametrize("layers", [1, 6])
@pytest.mark.parametrize("size", [300, 700])
def test_a_larger_gradient_in_each_epoch_is_no_burst_that_counts(layers: int, size: int) -> None:
    t = np.arange(size)
    epochs = np.where(t % 50 == 49, 4.0, 1.0)
    assert burst_rate(lambda rng: [epochs * v for v in norms(rng, layers, size)]) == 0
    late = np.where(t > size / 2, epochs, 1.0)
    assert burst_rate(lambda rng: [late * v for v in norms(rng, layers, size)]) == 1
    lasting = np.where(abs(t - size // 2 - 5) < 3, 10.0, epochs)
    assert burst_rate(lambda rng: [lasting * v for v in norms(rng, layers, size)]) == 1


def test_spikes_recur_if_they_are_many_brief_even_and_do_not_grow() -> None:
    at, high, equal = np.arange(5, 300, 30), np.ones(10, dtype=np.int64), np.ones(10)
    assert recurring(at, high, equal, 300).all()
    assert not recurring(at[:5], high[:5], equal[:5], 150).any(), "few"
    assert not recurring(at, high + 2, equal, 300).any(), "long"
    assert not recurring(at + 300, high, equal, 600).any(), "late"
    assert not recurring(at, high, equal, 600).any(), "they end"
    assert not recurring(at, high, np.arange(10.0), 300).any(), "they grow"
    high[3] = 9
    assert recurring(at, high, equal, 300).tolist() == [i != 3 for i in range(10)]


def test_as_many_are_expected_beside_others_as_come() -> None:
    """Log heights are drawn from the law that is assumed."""
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(400):
        heights = 10 * np.exp(0.3 * rng.exponential(size=20))
        counts.append((expected_beside(heights, np.ones(20, dtype=bool)) <= 0.1).sum())
    assert 0.05 <= np.mean(counts) <= 0.2
    assert expected_beside(np.array([9.0, 1e9]), np.zeros(2, dtype=bool)).tolist() == [0, 0]


def test_values_apart_do_not_follow_one_another() -> None:
    assert in_a_row(np.array([True, False, False, True])) == 1
    assert in_a_row(np.array([True, True, True])) == 3


@pytest.mark.parametrize(("size", "epoch"), [(600, 30), (1000, 100), (3000, 150)])
def test_the_small_last_batch_of_each_epoch_makes_no_spikes(size: int, epoch: int) -> None:
    """Two or three of its values pass the bar of a spike, fewer than recur by themselves."""
    counted = 0
    for seed in range(10):
        rng, at = np.random.default_rng(seed), np.arange(size)
        last = (at % epoch == epoch - 1) * rng.normal(size=size)
        loss = (0.3 + 2 * np.exp(-5 * at / size)) * np.exp(0.1 * rng.normal(size=size) + 0.6 * last)
        counted += spikes_that_stand_out(at, loss, find_spikes(at, loss)).any()
    assert counted <= 1


@pytest.mark.parametrize("times", [6, 20])
def test_a_spike_among_them_that_is_much_higher_counts(times: float) -> None:
    rng, at = np.random.default_rng(0), np.arange(1000)
    logs = 0.1 * rng.normal(size=1000) + 0.3 * (at % 50 == 49) * rng.normal(size=1000)
    logs[649] = np.log(times)
    loss = np.exp(logs)
    found = find_spikes(at, loss)
    counts = spikes_that_stand_out(at, loss, found)
    assert found["onset"][counts].tolist() == [649]


def test_places_must_be_wild_throughout_the_series() -> None:
    rng, at = np.random.default_rng(0), np.arange(2000)
    logs = 0.1 * rng.normal(size=2000)
    logs[1250] = 1.0
    assert not usual_at_its_place(logs, 1250)
    wild = 0.5 * rng.normal(size=2000) * (at % 50 == 0)
    assert usual_at_its_place(np.where(wild != 0, wild, logs), 1250)
    logs[1000:] += wild[1000:]  # from mid-run on: then something changed
    assert not usual_at_its_place(logs, 1250)
