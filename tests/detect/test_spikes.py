import numpy as np
import pytest
from scipy import signal, stats

from stabkit.detect import find_spikes
from stabkit.detect.level_filters import rolling_median
from tests.detect.sequential import rarely


def lognormal(seed: int, size: int, sigma: float = 0.3, rho: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=size + 200)
    noise = signal.lfilter([np.sqrt(1 - rho**2)], [1, -rho], noise)
    return np.exp(sigma * noise[200:])


def plant(value: np.ndarray, at: int, ratio: float, width: int = 1) -> np.ndarray:
    value = value.copy()
    value[at : at + width] = ratio * np.median(value)
    return value


GAINS = [(0.2, 0.02), (0.6, 0.2)]


def brute_force(y, window=100, threshold=6.0, first=12, floor=0.01):
    """Apply the rule with plain arrays; return whether each value is flagged."""
    flags = np.zeros(len(y), dtype=bool)
    history, kept, streak = [], None, []
    for i, x in enumerate(y):
        if kept is None:
            history.append(x)
            if len(history) == first:
                kept, errors, lines = begun(history)
                fitted = len(kept)
            continue
        expected = [np.median(kept[-window:]), *(level + slope for level, slope, _ in lines)]
        noise = [
            max(floor, 1.4826 * np.median(np.abs(e[-window:]))) * (1 + 8 / min(len(e), window))
            for e in errors
        ]
        scores = (x - np.array(expected)) / noise
        judge = int(np.argmax(scores))
        z = scores[judge]
        own = errors[judge][-600:]  # the noise of the oldest of 500 needs the 100 before it
        before = [
            1.4826 * np.median(np.abs(own[max(0, k - window) : k or 1])) for k in range(len(own))
        ]
        before = [max(floor, b) * (1 + 8 / min(k or 1, window)) for k, b in enumerate(before)]
        last = np.array(own) * np.minimum(1, 1.5 * noise[judge] / np.array(before))
        line = max(0, fitted - max(0, len(errors[judge]) - 600))
        last = last[line if len(own) - line >= 30 else 0 :][-500:]
        start = np.quantile(last, 0.9)
        over = last[last > start] - start
        scale = (over.sum() + 10 * 0.47 * noise[judge]) / (len(over) + 10)
        least = threshold / (1 + 8 / window)
        bar = max(least, min((start + 10 * scale) / noise[judge], 18))
        flags[i] = z >= 2.5 if streak else z >= bar
        if flags[i]:
            streak.append(x)
            lines = [(level + slope, 0.9 * slope, scale) for level, slope, scale in lines]
            if len(streak) == window // (5 if judge else 2):
                kept, errors, lines = begun(streak)
                fitted, streak = len(kept), []
            continue
        streak = []
        kept.append(x)
        for e, prediction in zip(errors, expected, strict=True):
            e.append(x - prediction)
        for j, (a, b) in enumerate(GAINS):
            _, slope, scale = lines[j]
            error = x - expected[1 + j]
            step = np.clip(error, -2.5 * scale, 2.5 * scale)
            scale = max(floor, 0.95 * scale + 0.05 * min(abs(error), 4 * scale))
            lines[j] = expected[1 + j] + a * step, slope + b * step, scale
    return flags


def begun(values):
    """Return values, errors of each predictor, and level, slope and scale of each filter."""
    at = np.arange(len(values)) - (len(values) - 1)
    slope = stats.theilslopes(values, at).slope
    level = np.median(values - slope * at)
    off_line = list(values - level - slope * at)
    scale = max(0.01, np.abs(off_line).mean())
    n = len(values)
    apart = np.sqrt((n + 1) * (n + 2) / (n - 1) / (n - 2))  # forecast over residual of a line
    errors = [list(values - np.median(values)), *(list(apart * np.array(off_line)) for _ in GAINS)]
    return list(values), errors, [(level, slope, scale)] * 2


@pytest.mark.parametrize("size", [1, 2, 5, 6, 99, 100])
def test_the_rolling_median_agrees_with_numpy(size):
    rng = np.random.default_rng(size)
    # Few distinct values: ties are where a bisection goes wrong.
    values = rng.integers(-4, 5, size=300) / 4
    for since in (1, 7, 150):
        expected = [np.median(values[max(0, i - size) : i]) for i in range(since, 300)]
        assert rolling_median(values, size, since).tolist() == expected


@pytest.mark.lengthy
@pytest.mark.parametrize("trend", [0, 60])
@pytest.mark.parametrize("sigma", [0.001, 0.1, 0.8])
def test_flags_agree_with_brute_force(sigma, trend):
    value = lognormal(3, 1500, sigma)
    value *= np.exp(0.3 * sigma * np.random.default_rng(3).standard_t(3, size=1500))  # a tail
    if trend:  # falls to a hundredth, and jumps again
        value *= 0.01 + np.exp(-np.arange(1500) / trend)
    value[0] *= np.exp(40 * max(sigma, 0.02))  # of the first history, which teaches no tail
    value[[40, 200, 300, 301, 500, 900]] *= np.exp(9 * max(sigma, 0.02))
    value[1000:1200] *= np.exp(12 * max(sigma, 0.02))
    flags = brute_force(np.log(value))
    # merge=0: each run of neighboring flagged points is an event, so the events give the flags.
    events = find_spikes(np.arange(1500), value, merge=0)
    covered = np.zeros(1500, dtype=bool)
    for onset, end in zip(events.onset, events.end, strict=True):
        covered[onset : end + 1] = True
    assert flags.sum() >= 24
    np.testing.assert_array_equal(covered, flags)


@pytest.mark.parametrize(
    ("rho", "sigma", "claimed"),
    # Claimed events per 1e5 steps, as docs/error-rates.md says them.
    [(0.0, 0.1, 1), (0.0, 0.3, 1), (0.0, 0.5, 1), (0.0, 0.8, 1), (0.9, 0.3, 3)],
)
def test_false_alarms_stay_within_the_stated_rate(rho, sigma, claimed):
    size = 60_000
    found = len(find_spikes(np.arange(size), lognormal(11, size, sigma, rho)))
    # 99.9 % Poisson bound: a detector that keeps its word fails once in a thousand seeds.
    assert found <= stats.poisson.ppf(0.999, claimed * size / 1e5)


@pytest.mark.parametrize(("rho", "claimed"), [(0.0, 0.002), (0.9, 0.011)])
def test_the_short_first_baseline_stays_within_the_stated_rate(rho, claimed):
    alarms = (len(find_spikes(np.arange(150), lognormal(s, 150, 0.3, rho))) > 0 for s in range(600))
    assert rarely(alarms, claimed, 600)


def test_a_planted_spike_is_located_and_sized():
    value = lognormal(0, 1000, 0.1)
    value[[600, 601, 602]] = [4.0, 9.0, 5.0]
    events = find_spikes(np.arange(0, 5000, 5), value)
    assert events[["onset", "peak", "end"]].to_numpy().tolist() == [[3000, 3005, 3010]]
    base = np.log(value[500:600])
    assert events.ratio[0] == pytest.approx(9 / np.exp(np.median(base)), rel=1e-12)
    # 100 errors of 0.1 each, and their noise taken 1.08 times as large
    assert events.height[0] == pytest.approx(np.log(events.ratio[0]) / 0.108, rel=0.25)


def test_scaling_the_series_changes_nothing_but_the_units():
    value = plant(lognormal(1, 800), 400, 50)
    small, large = find_spikes(np.arange(800), value), find_spikes(np.arange(800), 1e-8 * value)
    assert len(small) == 1
    np.testing.assert_allclose(small.to_numpy(), large.to_numpy(), rtol=1e-9)


def test_equal_spikes_do_not_hide_one_another():
    # In a window of 128 with mean and std, the fifth of these would already be invisible.
    at = np.arange(200, 2000, 15)
    value = lognormal(2, 2000, 0.1)
    value[at] = 20
    assert find_spikes(np.arange(2000), value).onset.tolist() == at.tolist()


def falling(seed, size=600, sigma=0.1, fall=40.0):
    return lognormal(seed, size, sigma) * (0.1 + 0.9 * np.exp(-np.arange(size) / fall))


@pytest.mark.parametrize("at", [15, 30, 60, 100, 300])
@pytest.mark.parametrize("ratio", [5, 10])
def test_a_spike_on_a_falling_curve_is_found(at, ratio):
    found = 0
    for seed in range(20):
        value = falling(seed)
        value[at] *= ratio
        found += at in find_spikes(np.arange(600), value).onset.tolist()
    assert found >= 19


@pytest.mark.parametrize("first", ["a single value", "a steep fall"])
@pytest.mark.parametrize("at", [60, 180, 400])
def test_high_first_values_hide_no_later_spike(first, at):
    found = 0
    for seed in range(20):
        steps = np.arange(500)
        level = 2 + 4 * (steps == 0) if first == "a single value" else 2 + 6 * (steps + 1.0) ** -0.7
        value = level * lognormal(seed, 500, 0.03)
        value[at : at + 10] *= 1.5  # 13 times the noise
        found += bool(find_spikes(steps, value).onset.between(at - 2, at + 2).any())
    assert found >= 18


def test_a_falling_curve_alone_raises_few_alarms():
    found = sum(len(find_spikes(np.arange(600), falling(seed))) for seed in range(100))
    assert found <= stats.poisson.ppf(0.999, 1.2)  # 2 in 100,000 steps


def test_an_event_goes_on_while_values_stay_high():
    value = lognormal(2, 600, 0.1)
    value[300:306] *= np.exp([0.9, 1.2, 1.5, 0.6, 0.5, 0.45])
    events = find_spikes(np.arange(600), value)
    assert events[["onset", "peak", "end"]].to_numpy().tolist() == [[300, 302, 305]]


def test_a_level_shift_ends_as_one_event_after_half_a_window():
    value = lognormal(4, 2000, 0.1)
    value[1000:] *= 20
    events = find_spikes(np.arange(2000), value)
    assert events[["onset", "end"]].to_numpy().tolist() == [[1000, 1049]]


def test_a_spike_is_found_at_the_new_level():
    value = lognormal(4, 2000, 0.1)
    value[1000:] *= 20
    value[1052] *= 20
    events = find_spikes(np.arange(2000), value)
    # 1052 is within `merge` of 1049, yet the event before ended with its level.
    assert events.onset.tolist() == [1000, 1052]


def test_events_merge_by_steps_and_neighbors_always():
    value = plant(plant(lognormal(5, 600, 0.1), 300, 30), 305, 30)
    assert len(find_spikes(np.arange(600), value, merge=5)) == 1
    assert len(find_spikes(np.arange(600), value, merge=4)) == 2
    sparse = plant(lognormal(5, 600, 0.1), 300, 30, width=3)
    assert len(find_spikes(np.arange(600) * 100, sparse)) == 1


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, 0.0])
def test_holes_neither_hide_nor_make_spikes(hole):
    clean = plant(lognormal(6, 1000, 0.2), 500, 30)
    holed = np.insert(clean, [500, 501, 100, 100, 700], hole)
    steps = np.arange(1000)
    at = np.insert(steps.astype(float), [500, 501, 100, 100, 700], np.nan)
    back = np.arange(1005)[at == 500][0]
    events = find_spikes(np.arange(1005), holed)
    assert events.onset.tolist() == [back]
    assert events.height[0] == pytest.approx(find_spikes(steps, clean).height[0], rel=1e-12)


def test_near_constant_series_do_not_alarm():
    rng = np.random.default_rng(7)
    assert find_spikes(np.arange(500), np.full(500, 3.0)).empty
    jitter = 3 * (1 + 1e-7 * rng.standard_t(2, size=5000))
    assert find_spikes(np.arange(5000), jitter).empty
    just_below, just_above = np.full(500, 3.0), np.full(500, 3.0)
    just_below[300], just_above[300] = 3 * 1.06, 3 * 1.07
    assert find_spikes(np.arange(500), just_below).empty
    assert len(find_spikes(np.arange(500), just_above)) == 1


def test_steady_growth_is_not_a_spike():
    value = lognormal(8, 2000, 0.05) * np.exp(np.arange(2000) / 50)
    assert find_spikes(np.arange(2000), value).empty


def test_empty_and_short_series_give_an_empty_frame_with_its_columns():
    for size in (0, 1, 12):
        events = find_spikes(np.arange(size), np.full(size, 1.0))
        assert list(events) == ["onset", "flagged", "peak", "end", "height", "ratio"]
        assert events.empty
        assert events.dtypes.map(str).tolist() == ["int64"] * 4 + ["float64"] * 2


def test_bad_input_is_refused():
    steps, ones = np.arange(30), np.ones(30)
    with pytest.raises(ValueError, match="strictly increasing, got 3 at index 4"):
        find_spikes(np.array([0, 1, 2, 3, 3]), np.ones(5))
    with pytest.raises(ValueError, match="of one length"):
        find_spikes(steps, np.ones(29))
    with pytest.raises(ValueError, match="whole numbers"):
        find_spikes(steps + 0.5, ones)
    with pytest.raises(ValueError, match=r"negative.*-1\.0 at step 7"):
        find_spikes(steps, np.where(steps == 7, -1.0, 1.0))
    with pytest.raises(ValueError, match="min_history"):
        find_spikes(steps, ones, window=10)
    with pytest.raises(ValueError, match="threshold"):
        find_spikes(steps, ones, threshold=0)
    with pytest.raises(ValueError, match="mad_floor"):
        find_spikes(steps, ones, mad_floor=0)
    with pytest.raises(ValueError, match="merge"):
        find_spikes(steps, ones, merge=-1)
