"""Spikes: upward jumps of a positive series, such as a gradient norm or a loss."""

import math
from collections import deque
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.robust import (
    MAD_TO_STD,
    BoolArray,
    FloatArray,
    IntArray,
    SortedWindow,
    checked_series,
)

FEW = 5  # the noise of k errors is taken 1 + FEW / k times as large as they look
GOES_ON = 2.5  # deviations; an event lasts as long as values stay so high
# Gains of level and slope of the trend filters: one for noisy series, which remembers some 5 values
# and the slope of 50, and one for smooth series that bend, such as the first steps of a loss.
GAINS = ((0.2, 0.02), (0.6, 0.2))
CLIP = 2.0  # deviations; one value moves the filter by no more than this
TAIL = 500  # errors that tell how far up healthy values reach
TAIL_SHARE = 0.1  # of them, the largest: their mean excess is the scale of the tail
TAIL_REACH = 10.0  # such scales above the tail's beginning; e^-10 of an exponential tail
NORMAL_EXCESS = 0.47  # mean excess over the 90 % quantile, in deviations, where errors are normal
PRIOR = 10  # errors that the normal tail counts as
TAIL_LIMIT = 18.0  # deviations; what stands so high is flagged, whatever the tail looks like

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


class Score(NamedTuple):
    """How far a flagged value stands out."""

    z: float  # robust deviations above what was expected
    rise: float  # log of the ratio to what was expected


class Errors:
    """The recent errors of a predictor, without those of flagged values."""

    def __init__(self, errors: Sequence[float], window: int, floor: float) -> None:
        self._sizes = SortedWindow(window)
        self._recent: deque[float] = deque(maxlen=TAIL)
        self._floor = floor
        for error in errors:
            self.add(error)

    def add(self, error: float) -> None:
        self._sizes.push(abs(error))
        self._recent.append(error)

    def noise(self) -> float:
        """Return a robust standard deviation, the larger the fewer errors there are."""
        few = 1 + FEW / len(self._sizes)
        return max(self._floor, MAD_TO_STD * self._sizes.median()) * few

    def reach(self, noise: float) -> float:
        """Return how large an error of the heaviest tail that these errors show may be.

        Over the 90 % quantile, an exponential tail with the mean excess of the errors. A normal
        tail counts as PRIOR further errors, so that a few errors do not decide.
        """
        errors = np.array(self._recent)
        start = float(np.quantile(errors, 1 - TAIL_SHARE))
        over = errors[errors > start] - start
        scale = (over.sum() + PRIOR * NORMAL_EXCESS * noise) / (over.size + PRIOR)
        return start + TAIL_REACH * float(scale)


class Median:
    """Expects the median of the last values; for stationary series."""

    def __init__(self, values: Sequence[float], window: int, floor: float) -> None:
        self._values = SortedWindow(window)
        self._values.restart(values)
        middle = self._values.median()
        self.errors = Errors([value - middle for value in values], window, floor)
        self.most_flagged = window // 2  # in a row; then the level itself has moved

    def expected(self) -> float:
        return self._values.median()

    def take(self, value: float, noise: float) -> None:
        """Learn a value that was not flagged. `noise`: that of the errors before it."""
        self.errors.add(value - self.expected())
        self._values.push(value)

    def pass_over(self) -> None:
        """Move on by one value that was flagged."""


class Trend:
    """Expects what a filter of level and slope says (Holt 1957); for series that fall or rise."""

    def __init__(
        self, values: Sequence[float], window: int, floor: float, gains: tuple[float, float]
    ) -> None:
        self._level, self._slope = _line(values)
        self._gain, self._slope_gain = gains
        line = (self._level - self._slope * i for i in range(len(values) - 1, -1, -1))
        errors = [value - middle for value, middle in zip(values, line, strict=True)]
        self.errors = Errors(errors, window, floor)
        self.most_flagged = window // 5

    def expected(self) -> float:
        return self._level + self._slope

    def take(self, value: float, noise: float) -> None:
        """Learn a value that was not flagged; it moves the filter by CLIP deviations at most."""
        expected = self.expected()
        error = value - expected
        self.errors.add(error)
        step = min(max(error, -CLIP * noise), CLIP * noise)
        self._level = expected + self._gain * step
        self._slope += self._slope_gain * step

    def pass_over(self) -> None:
        """Move on by one value that was flagged: along the slope, which levels off."""
        self._level, self._slope = self.expected(), 0.9 * self._slope


class SpikeScorer:
    """Robust z of each new log value against what the values before it lead to expect.

    There are several predictors: the median of the last `window` values, and filters of level and
    slope. A value is flagged if it stands out for one of them. The median sees a spike that grows
    over several steps, which a filter follows. The filters see one while the series falls, rises or
    bends, where the errors of the median are large. Flagged values teach none of them.

    Takes one update per point, in order; `find_spikes` and an online monitor get the same scores.
    """

    def __init__(self, window: int, threshold: float, min_history: int, mad_floor: float) -> None:
        self._window, self._floor = window, mad_floor
        self._bar = threshold / (1 + FEW / window)
        self._first: list[float] = []
        self._min_history = min_history
        self._streak: list[float] = []
        self.restarted = False

    def _start(self, values: Sequence[float]) -> None:
        """Begin with these values as the only history."""
        options = values, self._window, self._floor
        self._predictors: list[Median | Trend] = [Median(*options)]
        self._predictors += [Trend(*options, gains) for gains in GAINS]

    def update(self, log_value: float) -> Score | None:
        """Return the score of a value that is flagged, else None."""
        self.restarted = False
        if len(self._first) < self._min_history:
            self._first.append(log_value)
            if len(self._first) == self._min_history:
                self._start(self._first)
            return None
        noises = [predictor.errors.noise() for predictor in self._predictors]
        rises = [log_value - predictor.expected() for predictor in self._predictors]
        scores = [rise / noise for rise, noise in zip(rises, noises, strict=True)]
        most = scores.index(max(scores))
        z, rise, noise, judge = scores[most], rises[most], noises[most], self._predictors[most]
        flagged = z >= GOES_ON if self._streak else z >= self._bar
        if flagged and not self._streak and z < TAIL_LIMIT:
            flagged = rise > judge.errors.reach(noise)
        if not flagged:
            self._streak.clear()
            for predictor, scatter in zip(self._predictors, noises, strict=True):
                predictor.take(log_value, scatter)
            return None
        self._streak.append(log_value)
        for predictor in self._predictors:
            predictor.pass_over()
        if len(self._streak) == judge.most_flagged:
            # So many high values in a row are a new level, not a spike.
            self._start(self._streak)
            self._streak = []
            self.restarted = True
        return Score(z, rise)


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
    of the last `window` errors of each. Points that are flagged move neither
    the predictors nor the noise, so spikes cannot hide one another. The first `min_history` points
    are the first history; with so few the bar is higher (`threshold` holds for `window` errors). A
    point is flagged only if it also exceeds the tail that the errors of the series show, so that
    heavy tails and saw teeth raise few alarms.

    An event goes on while points stay 2.5 deviations high. After window // 2 flagged points in a
    row (window // 5 on a trend) the level itself has moved: the event ends there and the history
    restarts from those points. Flagged points that are neighbors, or at most `merge` steps apart,
    are one event.

    Non-finite values are events of another kind, and zeros have no logarithm: both are left out as
    if they had not been measured. `mad_floor` (log units) keeps near-constant series quiet: at the
    defaults nothing below exp(6 * 0.01) = 1.06 times what was expected is ever flagged. There is no
    minimum ratio in addition: a loss bounded by ln N may never reach 1.5 times its median.

    Rates of false alarms and power, on stationary series and on trends: docs/detectors.md.

    Returns one row per event: onset, peak, end (steps of the first, largest and last point), height
    (robust z of the peak), ratio (of the peak to what was expected there). Raises ValueError for
    steps that do not increase, negative values, options out of range.
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
    scorer = SpikeScorer(window, threshold, min_history, mad_floor)
    points = []
    for i, log_value in enumerate(np.log(values).tolist()):
        if (score := scorer.update(log_value)) is not None:
            points.append((i, score, scorer.restarted))
    if not points:  # most series are healthy: save the making of a frame
        return _NO_SPIKES.copy()
    flagged = np.array([i for i, _, _ in points], dtype=np.int64)
    begin = begin_events(flagged, steps[flagged], np.array([end for _, _, end in points]), merge)
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
    steps: IntArray,
    values: FloatArray,
    points: Sequence[tuple[int, Score, bool]],
    begin: IntArray,
) -> pd.DataFrame:
    rows = []
    for a, b in zip(begin, [*begin[1:], len(points)], strict=True):
        event = points[a:b]
        peak, score, _ = max(event, key=lambda point: float(values[point[0]]))
        times = steps[[event[0][0], peak, event[-1][0]]]
        rows.append((*times, score.z, math.exp(score.rise)))
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


_INTEGERS, _FLOATS = ("onset", "peak", "end"), ("height", "ratio")
_COLUMNS = dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(_FLOATS, "float64")
_NO_SPIKES = pd.DataFrame(columns=list(_COLUMNS)).astype(_COLUMNS)
