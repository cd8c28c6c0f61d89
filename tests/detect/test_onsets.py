import numpy as np
import pytest

from stabkit.detect import find_spikes
from stabkit.detect.onsets import half_height_onset


def by_hand(steps: list[int], logs: list[float], first: int, peak: int, since: int) -> int:
    """Follow the definition word by word."""
    before = [logs[i] for i in range(len(logs)) if 15 <= first - i <= 40]
    if first < 25:  # fewer than ten of them: the first ten values of the series count as well
        before = [
            logs[i] for i in range(len(logs)) if first - i <= 40 and (first - i >= 15 or i < 10)
        ]
    level = float(np.median(before))
    if logs[peak] <= level:
        return steps[first]
    half = (logs[peak] + level) / 2
    onset = next(i for i in range(first, peak + 1) if logs[i] >= half)
    earliest = max(first - 15, min(since, first), 0)
    while onset - 1 >= earliest and logs[onset - 1] >= half:
        onset -= 1
    return steps[onset]


@pytest.mark.parametrize("seed", range(200))
def test_the_onset_is_that_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(14, 120))
    steps = np.cumsum(rng.integers(1, 4, size=size))
    logs = np.cumsum(rng.normal(size=size)) + rng.normal(size=size)
    first = int(rng.integers(12, size))
    peak = int(rng.integers(first, size))
    since = int(rng.integers(0, first + 1))
    found = half_height_onset(steps, logs, first, peak, since)
    assert found == by_hand(steps.tolist(), logs.tolist(), first, peak, since)


def test_unequal_noise_and_height_do_not_change_the_date() -> None:
    """A rise over 15 steps, flagged as soon as it passes seven deviations of its own noise."""
    rng, rise = np.random.default_rng(0), np.clip((np.arange(140) - 85) / 15, 0, 1)
    dates, crossed = [], []
    for noise, height in ((0.15, 1.8), (0.075, 1.8), (0.15, 2.7)) * 200:
        logs = height * rise + noise * rng.normal(size=140)
        first = int(np.argmax(logs > 7 * noise))
        crossed.append(first)
        dates.append(half_height_onset(np.arange(140), logs, first, int(logs.argmax())))
    late, dated = (np.mean(np.reshape(of, (-1, 3)), axis=0) for of in (crossed, dates))
    assert late[0] - late[1:].max() > 2, "the first flagged step depends on noise and height"
    assert np.ptp(dated) < 0.5


def test_a_spike_is_dated_in_its_rise_and_not_in_the_event_before() -> None:
    rng = np.random.default_rng(1)
    logs = 0.1 * rng.normal(size=300)
    logs[100], logs[112:115] = 3, (1, 2.5, 4)
    events = find_spikes(np.arange(300), np.exp(logs))
    assert events[["onset", "flagged", "peak"]].to_numpy().tolist() == [
        [100, 100, 100], [113, 112, 114]
    ]  # fmt: skip


def test_a_high_value_long_before_is_no_part_of_the_spike() -> None:
    logs = np.zeros(120)
    logs[[86, 87, 97]] = 1.5  # a restless layer
    logs[100:104] = (1.2, 2, 1, 0.5)
    assert half_height_onset(np.arange(120), logs, 100, 101) == 100
    logs[98:100] = 1.1  # now the values from 97 on belong to it
    assert half_height_onset(np.arange(120), logs, 100, 101) == 97
