import sys

import numpy as np
import pytest
from scipy.signal import lfilter

from stabkit.detect import find_departure, find_long_rises, find_spikes

STEPS = np.arange(400) * 10


def falling(seed: int, noise: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (3 + 5 * np.exp(-np.arange(400) / 60)) * np.exp(noise * rng.normal(size=400))


def test_a_loss_that_leaves_for_good_is_found_with_its_levels() -> None:
    loss = falling(0)
    loss[250:] = 6 * np.exp(0.02 * np.random.default_rng(1).normal(size=150))
    (row,) = find_departure(STEPS, loss).itertuples()
    assert 2400 <= row.onset <= 2500
    assert row.end == 3990
    assert row.best == pytest.approx(3.08, rel=0.03)
    assert row.level == pytest.approx(6, rel=0.02)
    assert row.ratio == pytest.approx(row.level / row.best, rel=1e-12)


@pytest.mark.parametrize("stretch", [(250, 300), (328, 380), (300, 388)])
def test_a_loss_that_comes_back_has_not_left(stretch: tuple[int, int]) -> None:
    loss = falling(0)
    loss[slice(*stretch)] *= 3
    assert find_departure(STEPS, loss).empty
    assert find_departure(STEPS, loss, ratio=1.15).empty


@pytest.mark.parametrize("end", [1.3, 1.33])
def test_a_level_within_the_ratio_has_not_left(end: float) -> None:
    loss = falling(0)
    loss[250:] = 3.0 * end
    assert find_departure(STEPS, loss).empty


def test_healthy_losses_never_leave() -> None:
    for seed in range(200):
        assert find_departure(STEPS, falling(seed, noise=0.3)).empty


def test_a_distance_within_the_noise_of_values_does_not_count() -> None:
    rng = np.random.default_rng(0)  # a fitted model: single losses scatter over decades
    small = 0.002 * np.exp(0.8 * rng.normal(size=400)) * np.linspace(1, 1.6, 400)
    assert find_departure(STEPS, small).empty


def test_a_noisy_loss_that_still_falls_has_not_left() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        loss = np.exp(-np.arange(160) / 60 + 0.5 * rng.normal(size=160))
        assert find_departure(np.arange(160), loss).empty


def test_a_negative_loss_leaves_when_half_of_the_gain_is_lost() -> None:
    rng = np.random.default_rng(0)
    loss = -0.9 + 0.9 * np.exp(-np.arange(400) / 40) + 0.01 * rng.normal(size=400)
    assert find_departure(STEPS, loss).empty
    loss[200:] += 0.6
    (row,) = find_departure(STEPS, loss).itertuples()
    assert 1900 <= row.onset <= 2000
    assert np.isnan(row.ratio)


def test_values_that_are_not_finite_and_short_series_are_passed_over() -> None:
    loss = falling(0)
    loss[250:] = 6
    loss[260] = np.nan
    assert len(find_departure(STEPS, loss)) == 1
    assert find_departure(STEPS[:19], loss[:19]).empty
    assert find_departure([], []).empty


@pytest.mark.parametrize("ends", [[sys.float_info.max], [5e-324, 1e300] * 100])
def test_ratios_beyond_the_largest_number_are_the_largest(ends: list[float]) -> None:
    values = np.concatenate([2.3 * 0.99 ** np.arange(300) + 0.3, ends])
    for find in (find_departure, find_long_rises, find_spikes):
        found = find(np.arange(len(values)), values)
        assert np.isfinite(found["ratio"]).all()


@pytest.mark.parametrize("size", [13, 16, 19])
@pytest.mark.parametrize("level", [2.3, 1e5])
def test_a_short_loss_that_leaves_is_found(size: int, level: float) -> None:
    t = np.arange(size)
    for seed in range(10):
        noise = np.exp(0.05 * np.random.default_rng(seed).normal(size=size))
        values = np.where(t < size // 2, 0.5 + 1.8 * np.exp(-5 * t / size), level) * noise
        assert len(find_departure(t, values)) == 1


@pytest.mark.parametrize("values", [13, 100, 4_000])
@pytest.mark.parametrize("at", [2, 4])
def test_a_loss_that_explodes_among_its_first_values_has_left(values: int, at: int) -> None:
    """No running median knows the level before."""
    loss = 2.3 * np.exp(0.1 * np.random.default_rng(values).normal(size=values))
    loss[at:] *= 1e4
    (row,) = find_departure(np.arange(values), loss).itertuples()
    assert row.onset == at
    assert row.best < 4
    assert row.level == pytest.approx(2.3e4, rel=0.2)


def test_a_loss_that_rises_at_first_for_another_reason_has_not_left() -> None:
    t = np.arange(400)
    noise = np.exp(0.02 * np.random.default_rng(0).normal(size=400))
    for loss in (
        np.where(t < 4, 1.0, 6.0) * noise,  # contrastive: more negatives
        np.concatenate([[1e-3], 5 * noise[1:]]),  # the first value is a placeholder
    ):
        assert find_departure(t, loss).empty


@pytest.mark.parametrize(("size", "most"), [(100, 0.35), (200, 0.25), (500, 0.15)])
def test_a_loss_that_wanders_seldom_leaves(size: int, most: float) -> None:
    """Its deviations from the running median do not show how far it wanders."""
    runs, alarms, found = 40, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        slow = lfilter([0.19**0.5], [1, -0.9], rng.normal(size=size + 100))[100:]  # variance of 1
        alarms += len(find_departure(np.arange(size), np.exp(0.2 * slow)))
        loss = (1 + 3 * np.exp(-8 * np.arange(size) / size)) * np.exp(0.05 * slow)
        loss[size // 2 :] *= 1.7
        found += len(find_departure(np.arange(size), loss))
    assert alarms <= most * runs
    assert found >= 0.95 * runs


def test_an_earlier_rise_that_came_back_hides_no_large_one() -> None:
    loss = falling(0)
    loss[150:180] *= 20
    loss[250:] *= 2.5
    assert len(find_departure(STEPS, loss)) == 1


@pytest.mark.parametrize("ratio", [1.0, -2.0, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be above 1, got"):
        find_departure(np.arange(50), np.ones(50), ratio=ratio)


def test_a_smaller_ratio_finds_a_smaller_departure() -> None:
    loss = np.where(np.arange(200) < 100, 1.0, 1.25)
    assert find_departure(np.arange(200), loss).empty
    (row,) = find_departure(np.arange(200), loss, ratio=1.2).itertuples()
    assert (row.onset, row.ratio) == (pytest.approx(100, abs=6), pytest.approx(1.25))


@pytest.mark.parametrize("begin", [0.3, 0.5])
def test_a_slow_rise_begins_where_it_leaves_the_noise(begin: float) -> None:
    for seed in range(10):
        at = np.arange(2000) / 2000
        loss = 2.8 + 4 * np.exp(-at / 0.02) + 0.03 * np.random.default_rng(seed).normal(size=2000)
        loss *= 1 + 2 * np.clip((at - begin) / (1 - begin), 0, None)
        (row,) = find_departure(np.arange(2000), loss).itertuples()
        assert 0 <= row.onset - 2000 * begin <= 100
