import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stabkit.detect import find_spikes
from stabkit.detect.joint_spikes import (
    BEFORE,
    SHARE,
    SHARED_BAR,
    TOGETHER,
    find_layer_spikes,
    rises,
    shared_spikes,
)
from stabkit.detect.layer_tails import bursts_that_stand_out
from stabkit.detect.level_filters import rolling_median
from stabkit.detect.online import OnlineSharedSpikes
from stabkit.detect.simulate import simulate_norms
from stabkit.detect.simulate.noise import ar1
from stabkit.detect.spikes import measured_together, usable_series
from stabkit.detect.swells import find_layer_swells

STEPS = np.arange(500)


def brute_force(logs: np.ndarray) -> list[int]:
    """Return the first step of each stretch in which enough layers pass the bar."""
    found = []
    for first in range(BEFORE, logs.shape[1] - TOGETHER + 1):
        passing = 0
        for y in logs:
            before = np.sort(y[first - BEFORE : first])
            noise = max(0.01, (before[22] - before[7]) / 1.349)
            rise = y[first : first + TOGETHER].max() - np.median(before)
            passing += rise / noise >= SHARED_BAR
        if passing / len(logs) >= SHARE:
            found.append(first)
    return found


def test_shared_stretches_agree_with_brute_force() -> None:
    some = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        logs = 0.1 * (2 * rng.standard_t(2, 150) + rng.standard_normal((6, 150)))
        expected = brute_force(logs)
        found = BEFORE + np.flatnonzero((rises(logs)[0] >= SHARED_BAR).mean(axis=0) >= SHARE)
        assert found.tolist() == expected
        assert any(shared_spikes(np.arange(150), logs, logs < np.inf)) == bool(expected)
        some += bool(expected)
    assert some >= 4


def burst(seed: int, height: float, layers: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return layers that rise by `height` deviations within five steps, at steps 300 to 304."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(layers):
        values = simulate_norms(rng, sigma=0.1, steps=500)
        values[300 + rng.integers(0, TOGETHER)] = np.exp(0.1 * height)
        found.append((STEPS, values))
    return found


def restless(
    layers: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make layers restless until 40 steps ahead of the burst, so that no layer shows it alone."""
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.3, 160))
    for _, values in layers:
        values[100:260] *= noise
    return layers


@pytest.mark.lengthy
def test_a_burst_that_no_layer_shows_alone_is_found_in_all_that_share_it() -> None:
    found = 0
    for seed in range(20):
        layers = restless(burst(seed, 7.0), seed)
        alone = [find_spikes(*layer)["onset"].between(300, 304).sum() for layer in layers]
        assert sum(alone) <= 2
        here = [rows[rows["onset"].between(300, 304)] for rows in find_layer_spikes(layers)]
        found += sum(map(len, here)) >= 6
    assert found >= 15


def test_a_layer_that_lacks_values_does_not_hide_a_burst() -> None:
    whole = burst(3, 12.0)
    peak = int(whole[0][1][300:305].argmax()) + 300
    for missing in ([250], [peak], [40, 298, peak, 450]):
        holed = [(np.delete(STEPS, missing), np.delete(whole[0][1], missing)), *whole[1:]]
        found = find_layer_spikes(holed)
        assert all(rows["onset"].between(300, 304).sum() == 1 for rows in found[1:])
        assert len(found[0]) == (peak not in missing)


def test_groups_hold_each_layer_once_with_its_values() -> None:
    """A layer that begins later, pauses, ends before or is measured seldom is in another group."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.standard_normal((9, 500)))
    steps = [
        STEPS, np.delete(STEPS, [3, 400]), np.delete(STEPS, np.arange(50, 490, 4)), STEPS[4:],
        np.delete(STEPS, np.arange(200, 230)), STEPS[30:], STEPS[:-1], STEPS[::10], STEPS[:20],
    ]  # fmt: skip
    layers = [(at, values[i, at]) for i, at in enumerate(steps)]
    groups = measured_together(layers, 30)
    assert [one.members for one in groups] == [[0, 1, 2, 3], [6], [4], [5], [7]]
    for members, every, logs, known in groups:
        some = sorted(set().union(*(steps[i].tolist() for i in members)))
        assert every.tolist() == [
            step for step in some if step >= max(steps[i][0] for i in members)
        ]
        for i, line, has in zip(members, logs, known, strict=True):
            assert has.tolist() == np.isin(every, steps[i]).tolist()
            np.testing.assert_array_equal(line[has], np.log(values[i, every[has]]))
            assert np.isfinite(line).all()


@pytest.mark.parametrize(
    ("lacking", "steps"),
    [(10, slice(0, 75)), (1, slice(0, 75)), (6, slice(700, 780)), (10, slice(0, 8))],
)
def test_healthy_layers_that_begin_late_or_pause_have_no_burst(lacking: int, steps: slice) -> None:
    """As where a part of a network is frozen at first."""
    found = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        fall = 1 + 3 * np.exp(-np.arange(1500) / 60)
        layers = [(np.arange(1500), np.exp(rng.normal(0, 0.2, 1500)) * fall) for _ in range(12)]
        for i in range(lacking):
            layers[i] = tuple(np.delete(series, np.r_[steps]) for series in layers[i])
        spikes = find_layer_spikes(layers)
        found += any(kept.any() for kept in bursts_that_stand_out(layers, spikes))
        found += any(map(len, find_layer_swells(layers)))
    assert found <= 1


def test_infinite_values_at_the_peak_do_not_hide_the_burst_of_the_others() -> None:
    found = 0
    for seed in range(10):
        layers = restless(burst(seed, 9.0, 12), seed)
        layers = [
            (steps, np.where((steps >= 300) & (steps < 305) & (i < 6), np.nan, values))
            for i, (steps, values) in enumerate(layers)
        ]
        layers = [usable_series(*layer) for layer in layers]
        here = [rows["onset"].between(300, 304).any() for rows in find_layer_spikes(layers)]
        found += sum(here[6:]) >= 5
    assert found >= 8


def test_healthy_layers_share_no_spike() -> None:
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        common = ar1(rng, 500, 0.5)[:, 0]
        logs = 0.2 * (0.83 * common + 0.55 * ar1(rng, 500, 0.5, 12).T)
        alarms += any(shared_spikes(STEPS, logs, logs < np.inf))
    assert alarms <= stats.poisson.ppf(0.999, 1.0 * 60 * 500 / 1e5)


def test_a_spike_that_the_layer_has_already_is_not_doubled() -> None:
    layers = burst(3, 30.0)
    for rows, layer in zip(find_layer_spikes(layers), layers, strict=True):
        pd.testing.assert_frame_equal(rows, find_spikes(*layer))


def test_layers_that_share_nothing_have_the_spikes_of_find_spikes() -> None:
    layers = [(STEPS, simulate_norms(np.random.default_rng(s), sigma=0.3)[:500]) for s in range(6)]
    for i, (_, values) in enumerate(layers):
        values[100 + 40 * i] *= 30
    for rows, layer in zip(find_layer_spikes(layers), layers, strict=True):
        assert len(rows) == 1
        pd.testing.assert_frame_equal(rows, find_spikes(*layer))


def test_layers_without_values_do_not_count() -> None:
    empty = (STEPS[:0], np.zeros(0))
    found = find_layer_spikes([*burst(1, 12.0, 4), *[empty] * 20])
    assert [len(rows) for rows in found] == [1] * 4 + [0] * 20


@pytest.mark.parametrize("since", [0, 5, 12, 60])
@pytest.mark.parametrize("window", [2, 7, 30])
def test_the_rolling_median_is_that_of_the_values_before(since: int, window: int) -> None:
    values = np.random.default_rng(0).integers(-5, 6, 60) / 4  # ties are where a bisection errs
    if since == 0:
        values, since = np.concatenate([[0.5], values]), 1
    medians = rolling_median(values, window, since)
    expected = [np.median(values[max(0, i - window) : i]) for i in range(since, len(values))]
    np.testing.assert_array_equal(medians, expected)


def test_a_value_belongs_to_one_of_two_shared_spikes() -> None:
    """Two stretches of five values overlap: the tail of the first lies in the second as well."""
    noise = np.random.default_rng(0).normal(0, 0.1, (6, 260))
    noise[:5, 200], noise[1:, 206] = 2.0, 2.0
    noise[:, 201:205] = 0.35
    spikes = shared_spikes(np.arange(260), noise, noise < np.inf)
    for _, first, second in zip(range(1, 5), *zip(*spikes[1:5], strict=True), strict=True):
        assert first[3] < second[1], "the second begins behind the end of the first"
        assert (first[2], second[2]) == (200, 206)
        assert first[0] < second[0]


@pytest.mark.lengthy
@pytest.mark.parametrize("block", [1, 7, 300])
def test_online_the_same_bursts_are_found_however_the_values_come(block: int) -> None:
    names = [f"blocks.{i}" for i in range(6)]
    some = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        logs = 0.1 * (2 * rng.standard_t(2, 300) + rng.standard_normal((6, 300)))
        steps, together = 2 * np.arange(300), np.array(brute_force(logs)) - BEFORE
        online = OnlineSharedSpikes()
        found = []
        for begin in range(0, 300, block):
            part = slice(begin, begin + block)
            found += online.add(names, steps[part], np.exp(logs[:, part].T))
        begins = together[np.diff(together, prepend=-9) > 1]  # the first stretch of each burst
        heights, level, _ = rises(logs)
        expected = []
        for k in begins:
            for i in np.flatnonzero(heights[:, k] >= SHARED_BAR):
                rise = logs[i, k + BEFORE : k + BEFORE + TOGETHER] - level[i, k]
                high = int(np.flatnonzero(rise >= 0.5 * rise.max())[0])
                expected.append((steps[k + BEFORE + high], names[i], np.exp(rise.max())))
        assert [(o.step, layer) for o, layer in found] == [e[:2] for e in expected]
        np.testing.assert_allclose([o.height for o, _ in found], [e[2] for e in expected])
        some += len(expected)
    assert some > 20


@pytest.mark.parametrize("block", [1, 50])
def test_online_a_layer_that_lacks_values_does_not_hide_a_burst(block: int) -> None:
    """A layer that is dropped in a fifth of the steps, and one that is frozen for a while."""
    rng = np.random.default_rng(0)
    names = [f"blocks.{i}" for i in range(8)]
    values = np.exp(rng.normal(0, 0.1, (300, 8)))
    values[200:202] *= 4
    values[rng.random(300) < 0.2, 0] = np.nan
    values[:170, 1] = np.nan
    values[200, 2] = np.inf
    online, found = OnlineSharedSpikes(), []
    for begin in range(0, 300, block):
        part = slice(begin, begin + block)
        found += online.add(names, np.arange(300)[part], values[part])
    assert {onset.step for onset, _ in found} <= {200, 201}
    layers = {layer for _, layer in found}
    assert layers >= {"blocks.0", *names[3:]}
    assert "blocks.1" not in layers, "30 values tell its level"


def test_online_a_step_without_values_is_left_out_and_a_new_layer_begins_a_new_history() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.1, (60, 5)))
    noise[40:42] *= 30
    steps, names = np.arange(60), list("abcde")
    gap = noise.copy()
    gap[35] = np.nan  # a step that an fp16 scaler skipped
    found = OnlineSharedSpikes().add(names, steps, gap)
    assert sorted((o.step, layer) for o, layer in found) == [(40, layer) for layer in names]
    online = OnlineSharedSpikes()
    assert online.add(names[:4], steps[:30], noise[:30, :4]) == []
    assert online.add(names, steps[30:], noise[30:]) == [], "too short a history of five layers"
