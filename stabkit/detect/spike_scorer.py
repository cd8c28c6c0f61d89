"""Score each value of a series against what the values before it predict."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stabkit.detect.level_filters import GAINS, Trend, follow, line, median, rolling_median
from stabkit.detect.robust import MAD_TO_STD, FloatArray, IntArray, median_of_sorted

FEW = 8  # the noise of k errors is taken 1 + FEW / k times as large as they look
GOES_ON = 2.5  # deviations; an event lasts as long as values stay so high
TAIL = 500  # errors that tell how far up healthy values reach
TAIL_SHARE = 0.1  # of them, the largest: their mean excess is the scale of the tail
TAIL_REACH = 10.0  # such scales above the tail's beginning; e^-10 of an exponential tail
NORMAL_EXCESS = 0.47  # mean excess over the 90 % quantile, in deviations, where errors are normal
PRIOR = 10  # errors that the normal tail counts as
OWN = 30  # errors of predictions; the tail of as many needs none of the first history
NOISIER = 1.5  # times the noise now; errors in a noise above it count for less
TAIL_LIMIT = 18.0  # deviations; what stands so high is flagged, whatever the tail looks like
CHUNK = 300  # values that are scored at once; the result does not depend on it


class Flagged(NamedTuple):
    """A value that stands out. `at` counts all values that the scorer was given."""

    at: int
    z: float  # robust deviations above what was expected
    rise: float  # log of the ratio to what was expected
    ends: bool  # whether the event ends here because the level itself has moved


class SpikeScorer:
    """Robust z of each new log value against what the values before it predict.

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

    def _start(self, history: Sequence[float]) -> None:
        """Begin with these values as the only history: their median, and a line through them."""
        values, n = np.array(history), len(history)
        level, slope = line(values)
        off_line = values - level - slope * np.arange(1 - n, 1)
        scale = max(self._floor, float(np.abs(off_line).mean()))
        # A line lies closer to the values it is drawn through than to the next one: the ratio of
        # the two deviations is that of least squares.
        apart = math.sqrt((n + 1) * (n + 2) / ((n - 1) * max(n - 2, 1)))
        self._values = values[-self._window :]
        self._errors = np.stack([values - median(values), *(apart * off_line for _ in GAINS)])
        self._trends = [Trend(level, slope, scale) for _ in GAINS]
        self._fitted = n  # of the errors, those of the history itself: they come first

    def _search(self, log_values: FloatArray, i: int, found: list[Flagged]) -> int:
        """Look for the next value that begins an event; return the index behind the last seen."""
        chunk = log_values[i : i + CHUNK]
        known = np.concatenate([self._values, chunk])
        medians = rolling_median(known, self._window, len(self._values))
        followed = self._follow(chunk)
        new_errors = [chunk - medians, *(errors for errors, _ in followed)]
        errors = np.concatenate([self._errors, np.stack(new_errors)], axis=1)
        new = errors.shape[1] - len(chunk)
        for k in self._candidates(errors, new).tolist():
            noises = self._noises_after(errors[:, : new + k])
            scores = errors[:, new + k] / noises
            j = int(scores.argmax())
            z, noise = float(scores[j]), float(noises[j])
            if z < self._bar:
                continue
            if z >= TAIL_LIMIT or z * noise > self._reach(errors[j, : new + k], noise):
                followed = self._follow(chunk[:k])
                self._take(known, errors, followed, len(chunk) - k)
                self._noises = noises
                return self._flag(log_values, i + k, j, z, noise, found)
        self._take(known, errors, followed, 0)
        return i + len(chunk)

    def _follow(self, values: FloatArray) -> list[tuple[FloatArray, Trend]]:
        """Return the errors of each filter at these values, and the filter behind them."""
        return [
            follow(trend, values, *gains, self._floor)
            for trend, gains in zip(self._trends, GAINS, strict=True)
        ]

    def _take(
        self,
        known: FloatArray,
        errors: FloatArray,
        followed: Sequence[tuple[FloatArray, Trend]],
        without: int,
    ) -> None:
        """Keep what the next values need; the last `without` of these are not taken."""
        self._values = known[: len(known) - without][-self._window :]
        taken = errors[:, : errors.shape[1] - without]
        self._errors = taken[:, -TAIL - self._window :]
        self._fitted = max(0, self._fitted - (taken.shape[1] - self._errors.shape[1]))
        self._trends = [trend for _, trend in followed]

    def _candidates(self, errors: FloatArray, new: int) -> IntArray:
        """Return which of the errors from index `new` on may reach the bar for some predictor.

        The noise is a rolling median, which is slow to compute. Counts show that most values are
        far below the bar: if fewer than half of the last sizes lie below a level, their median does
        not lie below it.
        """
        first = max(0, new - self._window)
        stop = np.arange(new, errors.shape[1]) - first
        count = np.minimum(stop, self._window)
        # the noise at which the bar is met; a little more, so that rounding excludes nothing
        most = errors[:, new:] / (self._bar / (1 + 1e-9) * (1 + FEW / count))
        possible = most >= self._floor
        size = np.abs(errors[:, first:])
        typical = np.sort(size, axis=1)[:, size.shape[1] // 2, None]
        below = np.zeros((len(size), size.shape[1] + 1), dtype=np.int32)
        for level in (0.6 * typical, 0.15 * typical):
            np.cumsum(size < level, axis=1, out=below[:, 1:])
            fewer = 2 * (below[:, stop] - below[:, stop - count]) < count
            possible &= (most >= MAD_TO_STD * level) | ~fewer
            if not possible.any():
                break
        return np.flatnonzero(possible.any(axis=0))

    def _noises_after(self, errors: FloatArray) -> FloatArray:
        """Return the noise after these errors: robust deviations, the larger the fewer errors."""
        last = np.sort(np.abs(errors[:, -self._window :]), axis=1)
        spread = MAD_TO_STD * median_of_sorted(last)
        noises: FloatArray = np.maximum(self._floor, spread) * (1 + FEW / last.shape[1])
        return noises

    def _reach(self, errors: FloatArray, noise: float) -> float:
        """Return the largest error that the tail of these errors still explains.

        Above the 90 % quantile the tail is taken as exponential, with the mean excess of the last
        errors. A normal tail counts as PRIOR further errors, so that a few errors do not decide.
        Errors from where the noise was larger than now, as in the first steep fall of a loss, are
        scaled down. The first history is left out as soon as it can be: its values lie on a curve
        that falls, and were not predicted.
        """
        past = np.minimum(np.arange(len(errors)), self._window)
        sizes = np.concatenate(
            [np.abs(errors[:1]), rolling_median(np.abs(errors), self._window, 1)]
        )
        noises = np.maximum(self._floor, MAD_TO_STD * sizes) * (1 + FEW / np.maximum(past, 1))
        scaled = errors * np.minimum(1.0, NOISIER * noise / noises)
        known = self._fitted if len(errors) - self._fitted >= OWN else 0
        last = scaled[known:][-TAIL:]
        start = float(np.quantile(last, 1 - TAIL_SHARE))
        over = last[last > start] - start
        scale = (over.sum() + PRIOR * NORMAL_EXCESS * noise) / (over.size + PRIOR)
        return start + TAIL_REACH * float(scale)

    def _go_on(self, log_values: FloatArray, i: int, found: list[Flagged]) -> int:
        """Look whether the event goes on at `i`; predictors and noise stand still meanwhile."""
        value = float(log_values[i])
        expected = [median(self._values), *(t.level + t.slope for t in self._trends)]
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
