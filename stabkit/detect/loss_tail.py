"""Tell which spikes stand out from the tail of their own series, however long the series is."""

import numpy as np
import pandas as pd

from stabkit.detect.recurring import (
    BRIEF,
    expected_beside,
    in_a_row,
    recurring,
    usual_at_its_place,
)
from stabkit.detect.robust import MAD_TO_STD, BoolArray, FloatArray, IntArray, rounded_by
from stabkit.detect.spike_scorer import GOES_ON
from stabkit.detect.spikes import FLOOR, MIN_HISTORY, WINDOW

MOST_EXPECTED = 0.01  # spikes expected by chance in the whole series
# In a series of fewer than LONG values, about as many as the bar of `find_spikes` was set on. Few
# values make a tail look longer than it is: in 900 values, .01 loses a fifth of the single values
# that double a loss with noise of 5 %, .05 none. Of the alarms in Student's t3 both leave a quarter
# or less.
MOST_EXPECTED_SHORT, LONG = 0.05, 1000
SHORTEST = 150  # values; fewer show no tail, and each spike stands out
SHARE, FEWEST = 0.01, 20  # the largest values tell the tail: this share, at least so many
RECENT = 5  # values before a spike, above which it must rise


def spikes_that_stand_out(steps: IntArray, values: FloatArray, spikes: pd.DataFrame) -> BoolArray:
    """Return for each row of `find_spikes` whether chance would not bring it in so many values.

    `steps` and `values` are those of `usable_series`. A batch of training may be hard, and the
    longer a run is, the harder is its hardest batch. Heights are the distances of log values from
    the median of the 100 before, in robust deviations of these. Their upper tail is taken as a
    power law, whose exponent is that of the largest heights outside of all spikes (Hill 1975): so
    it is known how often chance goes as high in the whole series. If spikes recur throughout the
    series (`recurring`), they are a tail as well (`expected_beside`), and the larger number counts.
    Each further high value in a row makes chance less likely, by the share of high values that
    follow another outside of spikes. The peak has the height that `find_spikes` gave it, since the
    median lags behind a falling series. A spike stands out if fewer than `MOST_EXPECTED` of its
    kind are expected (`MOST_EXPECTED_SHORT` in a short series), and brief ones if such values are
    not usual at their place in each epoch (`usual_at_its_place`). In a series of fewer than
    `SHORTEST` values all do, and where spikes leave no more than `FEWEST` values outside.
    """
    if not len(spikes) or len(values) < SHORTEST:
        return np.ones(len(spikes), dtype=bool)
    logs = np.log(values)
    level, noise = (frame.to_numpy()[:, 0] for frame in level_and_noise_before(pd.DataFrame(logs)))
    heights = (logs - level) / noise
    first = np.searchsorted(steps, spikes["flagged"].to_numpy())
    behind = np.searchsorted(steps, spikes["end"].to_numpy(), side="right")
    usual = np.isfinite(heights)
    for begin, end in zip(first, behind, strict=True):
        usual[begin : _last_high(logs, level[begin] + GOES_ON * noise[begin], end)] = False
    if usual.sum() <= FEWEST:
        return np.ones(len(spikes), dtype=bool)
    count, start, exponent = _tail(heights[usual])
    follows = _follows(np.where(usual, heights, -np.inf))
    bars = level[first] + GOES_ON * noise[first]
    high = np.array(
        [in_a_row(logs[a:b] >= bar) for a, b, bar in zip(first, behind, bars, strict=True)]
    )
    peaks, ratios = spikes["height"].to_numpy(), spikes["ratio"].to_numpy()
    member = recurring(first, high, ratios, len(values))
    usual_ones = count * np.maximum(1.0, peaks / start) ** (-1 / exponent)
    expected = np.maximum(usual_ones, expected_beside(peaks, member)) * follows ** (high - 1)
    most = MOST_EXPECTED if len(values) >= LONG else MOST_EXPECTED_SHORT
    stands_out = np.asarray(expected <= most)
    tops = np.searchsorted(steps, spikes["peak"].to_numpy())
    for i in np.flatnonzero(stands_out & (high <= BRIEF)):
        stands_out[i] = not usual_at_its_place(logs, int(tops[i]))
    return stands_out


def rose(steps: IntArray, values: FloatArray, spikes: pd.DataFrame) -> BoolArray:
    """Return for each row of `find_spikes` whether the series rose, above the values just before.

    After a sudden drop, as where the learning rate falls, the trend goes on downwards for some
    values, and a level that stays looks like a rise over it. So the logarithm of the peak must
    exceed that of the median of the `RECENT` values before the onset by half of that of `ratio`, or
    more. The peak must also exceed that median by more than the rounding of printed values.
    """
    logs, rounding = np.log(values), rounded_by(values)
    found = []
    for onset, peak, ratio in spikes[["onset", "peak", "ratio"]].itertuples(index=False):
        begin, highest = np.searchsorted(steps, [onset, peak])
        before = logs[max(0, begin - RECENT) : begin]
        level = np.median(before) if before.size else -np.inf
        rise = logs[highest] - level >= np.log(ratio) / 2
        found.append(rise and values[highest] - np.exp(level) >= rounding)
    return np.array(found, dtype=bool)


def ends_when_back(steps: IntArray, values: FloatArray, spikes: pd.DataFrame) -> IntArray:
    """Return for each row of `find_spikes` its last step that is not back at the level before.

    A falling trend goes on meanwhile, so that values at the level before still lie above it. Back
    is a value within a quarter of the height, in logarithms, of the median of the `RECENT` values
    before the onset. The peak always counts.
    """
    logs = np.log(values)
    found = []
    for onset, peak, end in spikes[["onset", "peak", "end"]].itertuples(index=False):
        begin, highest, last = np.searchsorted(steps, [onset, peak, end])
        level = np.median(logs[max(0, begin - RECENT) : begin]) if begin else -np.inf
        far = logs[highest : last + 1] - level >= (logs[highest] - level) / 4
        far[0] = True
        found.append(int(steps[highest + np.flatnonzero(far)[-1]]))
    return np.array(found, dtype=np.int64)


def level_and_noise_before(logs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the level and the noise of the values before each; NaN for the first ones."""
    level = logs.rolling(WINDOW, min_periods=MIN_HISTORY).median().shift(1)
    errors = (logs - level).abs()
    noise = errors.rolling(WINDOW, min_periods=MIN_HISTORY).median().shift(1) * MAD_TO_STD
    return level, np.maximum(FLOOR, noise)


def _last_high(logs: FloatArray, bar: float, end: int) -> int:
    """Return the index behind the last of the values from `end` on that stay above a bar.

    If a level stays high, only its first values are a spike. The high values behind them are no
    usual noise, and are left out too, up to WINDOW: then the rolling median has reached the level.
    """
    below = np.flatnonzero(logs[end : end + WINDOW] < bar)
    return end + (int(below[0]) if below.size else WINDOW)


def _tail(heights: FloatArray) -> tuple[int, float, float]:
    """Return the size of the tail, where it begins, and the inverse of its power (Hill)."""
    count = max(FEWEST, round(SHARE * heights.size))
    largest = np.sort(heights)[-count - 1 :]
    start = max(float(largest[0]), 1.0)  # deviation; a series of ties has no tail to speak of
    return count, start, max(float(np.log(np.maximum(largest[1:], start) / start).mean()), 0.01)


def _follows(heights: FloatArray) -> float:
    """Return how likely a high value is after a high one."""
    high = heights >= GOES_ON
    return float(((high[1:] & high[:-1]).sum() + 1) / (high[:-1].sum() + 2))
