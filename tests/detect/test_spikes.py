import numpy as np
import pytest
from scipy import signal, stats

from stabkit.detect import find_spikes
from stabkit.detect.robust import SortedWindow
from tests.detect.sequential import rarely


def lognormal(seed: int, size: int, sigma: float = 0.3, rho: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=size + 200)
    noise = signal.lfilter([np.sqrt(1 - rho**2)], [1, -rho], noise)
    return np.exp(sigma * noise[200:])


def plant(value: np.ndarray, at: int, ratio: float, width: int = 1) -> np.ndarray:
    value = value.copy()
    value[at : at + width] = ratio * np.median(value)
    return value


def brute_force_flags(log_value, window=100, threshold=6.0, min_history=20, mad_floor=0.01):
    """Apply the rule without any incremental state, restarts included."""
    kept, streak, flags = [], [], []
    for x in log_value:
        base = np.array(kept[-window:])
        flagged = False
        if base.size >= min_history:
            mad = np.median(np.abs(base - np.median(base)))
            flagged = 0.6745 * (x - np.median(base)) / max(mad, mad_floor) >= threshold
        flags.append(flagged)
        streak = [*streak, x] if flagged else []
        if not flagged:
            kept.append(x)
        elif len(streak) == window // 2:
            kept, streak = list(streak), []
    return np.array(flags)


@pytest.mark.parametrize("size", [1, 2, 5, 6, 99, 100])
def test_sorted_window_agrees_with_numpy(size):
    rng = np.random.default_rng(size)
    # Few distinct values: ties are where a bisection goes wrong.
    values = rng.integers(-4, 5, size=300) / 4
    window = SortedWindow(size)
    for i, value in enumerate(values):
        window.push(float(value))
        last = values[max(0, i + 1 - size) : i + 1]
        assert window.median() == np.median(last)
        assert window.mad() == np.median(np.abs(last - np.median(last)))


@pytest.mark.parametrize("sigma", [0.001, 0.1, 0.8])
def test_flags_agree_with_brute_force(sigma):
    value = lognormal(3, 1500, sigma)
    value[[300, 301, 500, 900]] *= np.exp(9 * max(sigma, 0.02))
    value[1000:1200] *= np.exp(12 * max(sigma, 0.02))
    flags = brute_force_flags(np.log(value))
    # merge=0: each run of neighboring flagged points is an event, so the events give the flags.
    events = find_spikes(np.arange(1500), value, merge=0)
    covered = np.zeros(1500, dtype=bool)
    for onset, end in zip(events.onset, events.end, strict=True):
        covered[onset : end + 1] = True
    assert flags.sum() >= 54
    np.testing.assert_array_equal(covered, flags)


@pytest.mark.parametrize(
    ("rho", "sigma", "claimed"),
    # Claimed events per 1e5 steps, as the docstring says them.
    [(0.0, 0.1, 0.1), (0.0, 0.3, 0.1), (0.0, 0.5, 0.1), (0.0, 0.8, 0.1), (0.9, 0.3, 1.5)],
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
    mad = np.median(np.abs(base - np.median(base)))
    expected = 0.6745 * (np.log(9) - np.median(base)) / mad
    assert events.height[0] == pytest.approx(expected, rel=1e-12)
    assert events.ratio[0] == pytest.approx(9 / np.exp(np.median(base)), rel=1e-12)


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
    just_below[300], just_above[300] = 3 * 1.09, 3 * 1.10
    assert find_spikes(np.arange(500), just_below).empty
    assert len(find_spikes(np.arange(500), just_above)) == 1


def test_steady_growth_is_not_a_spike():
    # Median and MAD of a ramp lag and widen together: z stays near .6745 * 50 / 25.
    value = lognormal(8, 2000, 0.05) * np.exp(np.arange(2000) / 50)
    assert find_spikes(np.arange(2000), value).empty


def test_empty_and_short_series_give_an_empty_frame_with_its_columns():
    for size in (0, 1, 20):
        events = find_spikes(np.arange(size), np.full(size, 1.0))
        assert list(events) == ["onset", "peak", "end", "height", "ratio"]
        assert events.empty
        assert events.dtypes.map(str).tolist() == ["int64"] * 3 + ["float64"] * 2


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
