"""Spikes of a long series stand out from its own tail, or do not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stabkit.detect import find_spikes
from stabkit.detect.loss_tail import LONG as LONGER
from stabkit.detect.loss_tail import MOST_EXPECTED, SHORTEST, ends_when_back, spikes_that_stand_out
from stabkit.detect.spikes import usable_series

LONG = 20_000


def noisy(seed: int, size: int = LONG, tail: float = 5.0) -> NDArray[np.float64]:
    """Return a falling loss with Student's noise of `tail` degrees of freedom, of 3 percent."""
    rng = np.random.default_rng(seed)
    level = 2.6 + 2.2 * (1 + np.arange(size) / 100) ** -0.45
    return level * np.exp(0.03 * rng.standard_t(tail, size) / np.sqrt(tail / (tail - 2)))


def standing_out(values: NDArray[np.float64]) -> list[int]:
    """Return the steps at which spikes that stand out begin."""
    steps = np.arange(len(values))
    rows = find_spikes(steps, values)
    return rows["flagged"][spikes_that_stand_out(*usable_series(steps, values), rows)].tolist()


@pytest.mark.lengthy
def test_the_hardest_batches_of_a_long_healthy_loss_do_not_stand_out() -> None:
    flagged = [len(find_spikes(np.arange(LONG), noisy(seed))) for seed in range(12)]
    assert np.count_nonzero(flagged) >= 9  # `find_spikes` alone finds some in nearly every run
    alarms = sum(bool(standing_out(noisy(seed))) for seed in range(12))
    assert alarms <= 1


@pytest.mark.parametrize("size", [500, LONGER - 1, LONGER])
def test_heavy_tails_of_short_losses_seldom_stand_out(size: int) -> None:
    runs, alarms = 40, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        level = 0.5 + 2 * (1 + np.arange(size) / 10) ** -0.35
        alarms += bool(standing_out(level * np.exp(0.15 * rng.standard_t(3, size))))
    assert alarms <= 0.2 * runs


@pytest.mark.parametrize("size", [SHORTEST, 300, LONGER - 1])
def test_a_single_value_that_doubles_a_short_loss_stands_out(size: int) -> None:
    runs, found = 20, 0
    for seed in range(runs):
        values = noisy(seed, size, tail=200.0) ** 2  # noise of 6 %
        values[size // 2] *= 2
        found += size // 2 in standing_out(values)
    assert found >= 0.9 * runs


@pytest.mark.parametrize("at", [3_000, 15_000])
def test_a_rise_that_lasts_stands_out_and_so_does_a_large_single_value(at: int) -> None:
    values = noisy(1)
    values[at : at + 3] *= 2
    assert standing_out(values) == [at]
    values = noisy(1)
    values[at] *= 6
    assert standing_out(values) == [at]


def test_a_single_value_stands_out_where_the_tail_is_short_and_not_where_it_is_long() -> None:
    short, long = noisy(2, tail=200.0), noisy(2, tail=3.0)
    short[9_000] *= 1.6
    long[9_000] *= 1.6
    assert standing_out(short) == [9_000]
    assert standing_out(long) == []


@pytest.mark.parametrize("at", [15, 60, 150])
def test_a_spike_in_the_first_steep_fall_stands_out(at: int) -> None:
    """The median of the values before lies far above a falling loss, or is of too few values."""
    values = noisy(5, 4_000, tail=200.0) * (1 + 30 * np.exp(-np.arange(4_000) / 50))
    values[at : at + 3] *= 4
    (begin,) = find_spikes(np.arange(4_000), values)["flagged"]
    assert standing_out(values) == [begin]


@pytest.mark.parametrize("size", [SHORTEST - 1, SHORTEST, LONGER - 1, LONGER, 3_000])
@pytest.mark.parametrize(("last", "ratio"), [(0.09, 1e4), (0.05, 3.0), (35, 10.0)])
def test_a_level_that_stays_high_is_no_tail_of_its_first_values(
    size: int, last: float, ratio: float
) -> None:
    """Whether it stays to the end (`last` is a share) or for some values."""
    for seed in range(6):
        values = noisy(seed, size, tail=200.0)
        begin = size // 2 if last > 1 else round(size * (1 - last))
        values[begin : begin + int(last) if last > 1 else None] *= ratio
        assert begin in standing_out(values)


def test_neither_scale_nor_unit_of_steps_matters() -> None:
    values = noisy(3)
    values[9_000:9_003] *= 2
    rows = find_spikes(np.arange(LONG) * 7, values * 1e-9)
    found = spikes_that_stand_out(*usable_series(np.arange(LONG) * 7, values * 1e-9), rows)
    assert rows["flagged"][found].tolist() == [7 * at for at in standing_out(values)]


def test_in_a_short_series_every_spike_stands_out() -> None:
    values = noisy(4, SHORTEST - 1, tail=3.0)
    values[100] *= 1.6
    assert len(standing_out(values)) == len(find_spikes(np.arange(len(values)), values)) > 0


def test_without_a_spike_there_is_nothing_to_judge() -> None:
    steps, values = usable_series(np.arange(LONG), np.ones(LONG))
    assert spikes_that_stand_out(steps, values, find_spikes(steps, values)).tolist() == []
    assert MOST_EXPECTED < 0.05


@pytest.mark.parametrize("last", [4, 8, 12])
def test_a_spike_on_a_falling_loss_ends_when_the_loss_is_back(last: int) -> None:
    """Its values are back at the level before, and above the trend that went on downwards."""
    steps = np.arange(60)
    for seed in range(6):
        noise = np.exp(0.02 * np.random.default_rng(seed).normal(size=60))
        values = (0.3 + 2 * np.exp(-steps / 8)) * noise
        values[30 : 30 + last] *= 3
        rows = find_spikes(steps, values)
        assert ends_when_back(steps, values, rows).tolist() == [29 + last]


def test_a_loss_with_a_spike_at_every_twentieth_step_can_be_judged() -> None:
    """Spikes and what follows them leave fewer values than tell a tail."""
    at = np.arange(160)
    values = np.exp(-1.5 * (at % 20) / 20 + 0.02 * np.random.default_rng(0).normal(size=160))
    spikes = find_spikes(at, values)
    assert len(spikes) > 1
    assert len(spikes_that_stand_out(at, values, spikes)) == len(spikes)
