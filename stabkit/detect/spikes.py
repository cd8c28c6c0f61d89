"""Spikes: upward jumps of a positive series, such as a gradient norm or a loss."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.onsets import half_height_onset
from stabkit.detect.robust import (
    MAD_TO_STD,
    BoolArray,
    FloatArray,
    IntArray,
    checked_series,
)

FEW = 10  # the noise of k errors is taken 1 + FEW / k times as large as they look
GOES_ON = 2.5  # deviations; an event lasts as long as values stay so high
# Gains of level and slope of the trend filters: one for noisy series, which remembers some 5 values
# and the slope of 50, and one for smooth series that bend, such as the first steps of a loss.
GAINS = ((0.2, 0.02), (0.6, 0.2))
CLIP = 2.5  # mean absolute errors, 2 deviations; one value moves a filter by no more than this
SCALE_GAIN, SCALE_CLIP = 0.05, 4.0  # of the mean absolute error, itself made robust
TAIL = 500  # errors that tell how far up healthy values reach
TAIL_SHARE = 0.1  # of them, the largest: their mean excess is the scale of the tail
TAIL_REACH = 10.0  # such scales above the tail's beginning; e^-10 of an exponential tail
NORMAL_EXCESS = 0.47  # mean excess over the 90 % quantile, in deviations, where errors are normal
PRIOR = 10  # errors that the normal tail counts as
TAIL_LIMIT = 18.0  # deviations; what stands so high is flagged, whatever the tail looks like
CHUNK = 1000  # values that are scored at once; the result does not depend on it


# The bar of a spike that is acted on while the run goes on, in robust deviations. The run is not
# over, so its number of steps is not known: some million before the end is a safe guess. In a
# million healthy values this raises no alarm at AR(1) 0 and .9 (the bar 6 raises 0 and 10), and 122
# where the logs are of Student's t(5). An action on a false alarm costs more than one in a table.
ONLINE_SPIKE_BAR = 9.0


def spike_bar(steps: int) -> float:
    """Return the bar of a spike in a recorded series of so many steps, in robust deviations.

    6 up to 1,000 steps, and 1 more for every ten times as many: the more values there are, the
    higher the largest of healthy ones stands.
    """
    return 6.0 + max(0.0, math.log10(max(steps, 1) / 1000))


class Flagged(NamedTuple):
    """A value that stands out. `at` counts all values that the scorer was given."""

    at: int
    z: float  # robust deviations above what was expected
    rise: float  # log of the ratio to what was expected
    ends: bool  # whether the event ends here because the level itself has moved


class Trend(NamedTuple):
    """A filter of level and slope (Holt 1957). `scale` is its recent mean absolute error."""

    level: float
    slope: float
    scale: float


class SpikeScorer:
    """Robust z of each new log value against what the values before it lead to expect.

    There are several predictors: the median of the last `window` values, and filters of level and
    slope. A value is flagged if it stands out for one of them. The median sees a spike that grows
    over several steps, which a filter follows. The filters see one while the series falls, rises or
    bends, where the errors of the median are large. Flagged values teach none of them.

    `find_spikes` and an online monitor get the same scores: it does not matter how many values
    come at once.
    """

    def __init__(self, window: int, threshold: float, min_history: int, mad_floor: float) -> None:
        self._window, self._floor = window, mad_floor
        self._bar = threshold / (1 + FEW / window)
        self._min_history = min_history
        self._first: list[float] = []
        self._streak: list[float] = []
        self._count = 0

    def add(self, log_values: FloatArray) -> list[Flagged]:
        """Take the next values, in order; return those that stand out."""
        found: list[Flagged] = []
        i, missing = 0, self._min_history - len(self._first)
        if missing > 0:
            self._first += log_values[:missing].tolist()
            i = min(missing, len(log_values))
            if len(self._first) == self._min_history:
                self._start(self._first)
        while i < len(log_values):
            if self._streak:
                i = self._go_on(log_values, i, found)
            else:
                i = self._search(log_values, i, found)
        self._count += len(log_values)
        return found

    def _start(self, values: Sequence[float]) -> None:
        """Begin with these values as the only history: their median, and a line through them."""
        self._values = np.array(values)[-self._window :]
        level, slope = _line(values)
        off_line = np.array(values) - level - slope * np.arange(1 - len(values), 1)
        off_median = np.array(values) - np.median(values)
        self._errors = [off_median, *(off_line for _ in GAINS)]
        scale = max(self._floor, float(np.abs(off_line).mean()))
        self._trends = [Trend(level, slope, scale) for _ in GAINS]

    def _search(self, log_values: FloatArray, i: int, found: list[Flagged]) -> int:
        """Look for the next value that begins an event; return the index behind the last seen."""
        chunk = log_values[i : i + CHUNK]
        known = np.concatenate([self._values, chunk])
        medians = _rolling_median(known, self._window)[len(self._values) - 1 : -1]
        followed = self._follow(chunk)
        new_errors = [chunk - medians, *(errors for errors, _ in followed)]
        errors = [np.concatenate(pair) for pair in zip(self._errors, new_errors, strict=True)]
        noises = np.array([self._noise(e)[len(e) - len(chunk) - 1 : -1] for e in errors])
        scores = np.array([e[len(e) - len(chunk) :] for e in errors]) / noises
        most = scores.argmax(axis=0)
        for k in np.flatnonzero(scores.max(axis=0) >= self._bar):
            j, z, noise = int(most[k]), float(scores[most[k], k]), float(noises[most[k], k])
            before = len(errors[j]) - len(chunk) + int(k)
            if z >= TAIL_LIMIT or z * noise > _reach(errors[j][:before], noise):
                followed = self._follow(chunk[:k])
                self._take(known, errors, followed, len(chunk) - int(k))
                self._noises = noises[:, k]
                return self._flag(log_values, i + int(k), j, z, noise, found)
        self._take(known, errors, followed, 0)
        return i + len(chunk)

    def _follow(self, values: FloatArray) -> list[tuple[FloatArray, Trend]]:
        """Return the errors of each filter at these values, and the filter behind them."""
        return [
            _follow(trend, values, *gains, self._floor)
            for trend, gains in zip(self._trends, GAINS, strict=True)
        ]

    def _take(
        self,
        known: FloatArray,
        errors: Sequence[FloatArray],
        followed: Sequence[tuple[FloatArray, Trend]],
        without: int,
    ) -> None:
        """Keep what the next values need; the last `without` of these are not taken."""
        self._values = known[: len(known) - without][-self._window :]
        self._errors = [e[: len(e) - without][-TAIL:] for e in errors]
        self._trends = [trend for _, trend in followed]

    def _noise(self, errors: FloatArray) -> FloatArray:
        """Return the noise after each error: a robust deviation, the larger the fewer there are."""
        count = np.minimum(np.arange(1, len(errors) + 1), self._window)
        spread = MAD_TO_STD * _rolling_median(np.abs(errors), self._window)
        return np.maximum(self._floor, spread) * (1 + FEW / count)

    def _go_on(self, log_values: FloatArray, i: int, found: list[Flagged]) -> int:
        """Look whether the event goes on at `i`; predictors and noise stand still meanwhile."""
        value = float(log_values[i])
        expected = [float(np.median(self._values)), *(t.level + t.slope for t in self._trends)]
        rises = value - np.array(expected)
        j = int((rises / self._noises).argmax())
        z = float(rises[j] / self._noises[j])
        if z < GOES_ON:
            self._streak = []
            return i
        return self._flag(log_values, i, j, z, float(self._noises[j]), found)

    def _flag(
        self, log_values: FloatArray, i: int, j: int, z: float, noise: float, found: list[Flagged]
    ) -> int:
        self._streak.append(float(log_values[i]))
        # along the slope, which levels off
        self._trends = [Trend(t.level + t.slope, 0.9 * t.slope, t.scale) for t in self._trends]
        # So many high values in a row are a new level, not a spike.
        ends = len(self._streak) >= self._window // (5 if j else 2)
        found.append(Flagged(self._count + i, z, z * noise, ends))
        if ends:
            self._start(self._streak)
            self._streak = []
        return i + 1


def _rolling_median(values: FloatArray, window: int) -> FloatArray:
    """Return the median of each value and up to `window` - 1 before it."""
    rolled: FloatArray = pd.Series(values).rolling(window, min_periods=1).median().to_numpy()
    return rolled


def _follow(
    trend: Trend, values: FloatArray, gain: float, slope_gain: float, floor: float
) -> tuple[FloatArray, Trend]:
    """Return the errors of a filter at each value, and the filter behind the last."""
    level, slope, scale = trend
    errors = []
    for value in values.tolist():
        level += slope
        error = value - level
        errors.append(error)
        size = abs(error)
        limit = CLIP * scale
        step = error if size <= limit else math.copysign(limit, error)
        level += gain * step
        slope += slope_gain * step
        most = SCALE_CLIP * scale
        scale += SCALE_GAIN * ((size if size < most else most) - scale)
        if scale < floor:
            scale = floor
    return np.array(errors), Trend(level, slope, scale)


def _reach(errors: FloatArray, noise: float) -> float:
    """Return how large an error of the heaviest tail that these errors show may be.

    Over the 90 % quantile, an exponential tail with the mean excess of the last errors. A normal
    tail counts as PRIOR further errors, so that a few errors do not decide.
    """
    last = errors[-TAIL:]
    start = float(np.quantile(last, 1 - TAIL_SHARE))
    over = last[last > start] - start
    scale = (over.sum() + PRIOR * NORMAL_EXCESS * noise) / (over.size + PRIOR)
    return start + TAIL_REACH * float(scale)


def _line(values: Sequence[float]) -> tuple[float, float]:
    """Return a robust line at the last of the values, and its slope (Theil 1950, Sen 1968)."""
    pairs = combinations(range(len(values)), 2)
    slope = float(np.median([(values[j] - values[i]) / (j - i) for i, j in pairs]))
    ends = len(values) - 1
    return float(np.median([y - slope * (i - ends) for i, y in enumerate(values)])), slope


def find_spikes(
    step: ArrayLike,
    value: ArrayLike,
    *,
    window: int = 100,
    threshold: float = 6.0,
    min_history: int = 12,
    merge: int = 10,
    mad_floor: float = 0.01,
) -> pd.DataFrame:
    """Find points whose logarithm lies `threshold` robust deviations above what was expected.

    What is expected is the median of the last `window` points, and what filters of level and slope
    say, so that a spike is found on a falling curve too: one of them is enough. The noise is that
    of the last `window` errors of each. Points that are flagged move neither the predictors nor the
    noise, so spikes cannot hide one another. The first `min_history` points are the first history;
    with so few the bar is higher (`threshold` holds for `window` errors). A point is flagged only
    if it also exceeds the tail that the errors of the series show, so that heavy tails and saw
    teeth raise few alarms.

    An event goes on while points stay 2.5 deviations high. After window // 2 flagged points in a
    row (window // 5 on a trend) the level itself has moved: the event ends there and the history
    restarts from those points. Flagged points that are neighbors, or at most `merge` steps apart,
    are one event.

    Non-finite values are events of another kind, and zeros have no logarithm: both are left out as
    if they had not been measured. `mad_floor` (log units) keeps near-constant series quiet: at the
    defaults nothing below exp(6 * 0.01) = 1.06 times what was expected is ever flagged. There is no
    minimum ratio in addition: a loss bounded by ln N may never reach 1.5 times its median.

    Rates of false alarms and power, on stationary series and on trends: docs/detectors.md.

    Returns one row per event: onset (the step at which it reached half of its own log height:
    `half_height_onset`), flagged, peak, end (steps of the first, largest and last flagged point),
    height (robust z of the peak), ratio (of the peak to what was expected there). Raises ValueError
    for steps that do not increase, negative values, options out of range.
    """
    _check_options(window, threshold, min_history, merge, mad_floor)
    steps, values = checked_series(step, value, "value")
    negative = np.flatnonzero(np.isfinite(values) & (values < 0))
    if negative.size:
        i = int(negative[0])
        raise ValueError(
            f"value must not be negative (spikes are sought in its logarithm), got {values[i]} "
            f"at step {steps[i]}: give a norm, or a loss shifted to be bounded below by 0"
        )
    usable = np.isfinite(values) & (values > 0)
    steps, values = steps[usable], values[usable]
    points = SpikeScorer(window, threshold, min_history, mad_floor).add(np.log(values))
    if not points:  # most series are healthy: save the making of a frame
        return _NO_SPIKES.copy()
    flagged = np.array([point.at for point in points], dtype=np.int64)
    begin = begin_events(flagged, steps[flagged], np.array([p.ends for p in points]), merge)
    return _events(steps, values, points, begin)


def _check_options(
    window: int, threshold: float, min_history: int, merge: int, mad_floor: float
) -> None:
    if not 2 <= min_history <= window:
        raise ValueError(f"min_history must be in 2..window ({window}), got {min_history}")
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold must be a positive number, got {threshold}")
    if not mad_floor > 0:
        raise ValueError(f"mad_floor must be above 0, got {mad_floor}")
    if merge < 0:
        raise ValueError(f"merge must be 0 steps or more, got {merge}")


def begin_events(
    index: IntArray,
    step: IntArray,
    restarted: BoolArray,
    merge: int,
) -> IntArray:
    """Return the positions, among the flagged points, at which an event begins.

    An event never spans a restart of the baseline.
    """
    if not index.size:
        return index
    apart = (np.diff(index) > 1) & (np.diff(step) > merge)
    return np.flatnonzero(np.concatenate([[True], apart | restarted[:-1]]))


def _events(
    steps: IntArray, values: FloatArray, points: Sequence[Flagged], begin: IntArray
) -> pd.DataFrame:
    rows = []
    logs, since = np.log(values), 0
    for a, b in zip(begin, [*begin[1:], len(points)], strict=True):
        event = points[a:b]
        peak = max(event, key=lambda point: float(values[point.at]))
        onset = half_height_onset(steps, logs, event[0].at, peak.at, since)
        since = event[-1].at + 1
        times = steps[[event[0].at, peak.at, event[-1].at]]
        rows.append((onset, *times, peak.z, math.exp(peak.rise)))
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


_INTEGERS, _FLOATS = ("onset", "flagged", "peak", "end"), ("height", "ratio")
_COLUMNS = dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(_FLOATS, "float64")
_NO_SPIKES = pd.DataFrame(columns=list(_COLUMNS)).astype(_COLUMNS)
