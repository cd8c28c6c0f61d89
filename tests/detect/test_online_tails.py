"""Spikes are confirmed while a run trains if they stand out from the noise before them."""

import numpy as np
import pytest

from stabkit.detect.online_tails import KEPT, TAIL, OnlineTails, _heights
from stabkit.detect.robust import MAD_TO_STD
from stabkit.detect.spikes import FLOOR, MIN_HISTORY, WINDOW

NAMES = [f"blocks.{i}" for i in range(5)]


def noise(seed: int, size: int, layers: int = 5) -> np.ndarray:
    return np.exp(0.2 * np.random.default_rng(seed).standard_normal((size, layers)))


def tails(values: np.ndarray, *, first: int = 0, flagged: set[int] = frozenset()) -> OnlineTails:  # type: ignore[assignment]
    online = OnlineTails()
    steps = first + np.arange(len(values))
    online.add(NAMES[: values.shape[1]], steps, values, flagged)
    return online


def test_heights_are_deviations_from_the_values_before() -> None:
    logs = np.log(noise(0, 260, 2))
    logs[40:45, 0] = np.nan
    heights = _heights(logs)
    errors = np.full(logs.shape, np.nan)
    for t in range(len(logs)):
        for layer in range(2):
            before = logs[max(0, t - WINDOW) : t, layer]
            before = before[np.isfinite(before)]
            if len(before) >= MIN_HISTORY:
                errors[t, layer] = logs[t, layer] - np.median(before)
            last = errors[max(0, t - WINDOW) : t, layer]
            last = np.abs(last[np.isfinite(last)])
            if len(last) >= MIN_HISTORY and np.isfinite(logs[t, layer]):
                deviation = max(FLOOR, MAD_TO_STD * np.median(last)) * (1 + 8 / len(last))
                assert heights[t, layer] == pytest.approx(errors[t, layer] / deviation)
            else:
                assert np.isnan(heights[t, layer])
    assert np.isfinite(heights).mean() > 0.85


@pytest.mark.parametrize("layers", [1, 5])
def test_a_high_value_stands_out_and_a_usual_one_does_not(layers: int) -> None:
    values = noise(1, 600, layers)
    values[500] = np.exp(3.0)  # 15 deviations
    online = tails(values, flagged={500})
    assert online.stands_out(500, 500)
    assert not online.stands_out(400, 400)
    assert not online.stands_out(501, 560)


def test_a_rise_of_all_layers_that_lasts_stands_out_before_its_values_do() -> None:
    values = noise(2, 600)
    values[500:516] *= np.exp(0.5)  # 2.5 deviations
    online = tails(values, flagged=set(range(500, 516)))
    assert not online.stands_out(500, 501)
    assert online.stands_out(500, 515)


def test_flagged_values_are_no_part_of_the_noise() -> None:
    values = noise(3, 600)
    earlier = set(range(200, 230))
    values[sorted(earlier)] *= np.exp(8.0)
    values[500] *= np.exp(2.5)
    assert tails(values, flagged=earlier | {500}).stands_out(500, 500)
    assert not tails(values, flagged={500}).stands_out(500, 500)


def test_the_bar_grows_with_the_steps_so_far() -> None:
    values = noise(4, 600)
    for height in np.arange(0.5, 3.0, 0.05):
        values[500] = np.exp(height)
        if tails(values, flagged={500}).stands_out(500, 500):
            break
    assert 0.5 < height < 2.9
    assert not tails(values, first=10**6, flagged={10**6 + 500}).stands_out(
        10**6 + 500, 10**6 + 500
    )


def test_too_few_values_before_a_spike_tell_no_tail() -> None:
    values = noise(5, 60)
    values[30] = np.exp(20.0)
    assert not tails(values, flagged={30}).stands_out(30, 30)
    later = np.concatenate([noise(6, 60), values])
    assert tails(later, flagged={90}).stands_out(90, 90)


def test_what_is_kept_suffices() -> None:
    """Values that come one by one give the same as all at once, however long ago they began."""
    size = KEPT + 900
    values = noise(7, size)
    values[size - 3] *= np.exp(1.4)
    values[100] = np.nan
    whole = tails(values, flagged={size - 3})
    online = OnlineTails()
    for t in range(0, size, 7):
        part = np.arange(t, min(size, t + 7))
        online.add(NAMES, part, values[part], {size - 3})
    recalled = OnlineTails()
    part = np.arange(size - KEPT, size)
    recalled.add(NAMES, part, values[part], {size - 3})
    seen = [one.stands_out(size - 3, size - 1) for one in (whole, online, recalled)]
    assert seen == [seen[0]] * 3
    heights = [_heights(one._logs)[-TAIL:] for one in (whole, online, recalled)]
    assert np.array_equal(heights[0], heights[1])
    assert np.array_equal(heights[0], heights[2])


def test_other_layers_begin_a_new_history() -> None:
    online = tails(noise(8, 500))
    values = noise(9, 20, 3)
    values[10] = np.exp(20.0)
    online.add(NAMES[:3], np.arange(500, 520), values, {510})
    assert not online.stands_out(510, 510)
