"""Spikes: upward jumps of a positive series, such as a gradient norm or a loss."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from stabkit.detect.robust import BoolArray, FloatArray, IntArray, SortedWindow, checked_series

Z_PER_MAD = 0.6745  # normal.ppf(3/4): a distance in MADs times this is one in standard deviations


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


class SpikeScorer:
    """Robust z of each new log value against the last `window` values that were not flagged.

    Takes one update per point, in order; `find_spikes` and an online monitor get the same scores.
    """

    def __init__(
        self, window: int, threshold: float, min_history: int, restart_after: int, mad_floor: float
    ) -> None:
        self._baseline = SortedWindow(window)
        self._threshold, self._mad_floor = threshold, mad_floor
        self._min_history, self._restart_after = min_history, restart_after
        self._streak: list[float] = []
        self.restarted = False

    def go_on_from(self, log_values: Iterable[float]) -> None:
        """Set the baseline to these values, the last `window` or more points, all unflagged."""
        self._baseline.restart(log_values)

    def update(self, log_value: float) -> tuple[float, float] | None:
        """Return (z, log of the ratio to the baseline median) if it is flagged, else None."""
        self.restarted = False
        score = self._score(log_value)
        if score is None:
            self._streak.clear()
            self._baseline.push(log_value)
            return None
        self._streak.append(log_value)
        if len(self._streak) == self._restart_after:
            # So many high points in a row are a new level, not a spike.
            self._baseline.restart(self._streak)
            self._streak.clear()
            self.restarted = True
        return score

    def _score(self, log_value: float) -> tuple[float, float] | None:
        if len(self._baseline) < self._min_history:
            return None
        rise = log_value - self._baseline.median()
        # Most points stop here, before the more expensive MAD: even the floor would not flag them.
        if Z_PER_MAD * rise < self._threshold * self._mad_floor:
            return None
        z = Z_PER_MAD * rise / max(self._baseline.mad(), self._mad_floor)
        return (z, rise) if z >= self._threshold else None


def find_spikes(
    step: ArrayLike,
    value: ArrayLike,
    *,
    window: int = 100,
    threshold: float = 6.0,
    min_history: int = 20,
    merge: int = 10,
    mad_floor: float = 0.01,
) -> pd.DataFrame:
    """Find points whose logarithm lies `threshold` robust deviations above the recent median.

    The baseline is the median and MAD of the logs of the last `window` points that were not
    flagged, so spikes cannot hide one another. After window // 2 flagged points in a row the level
    itself has moved: the event ends there and the baseline restarts from those points. Flagged
    points that are neighbors, or at most `merge` steps apart, are one event.

    Non-finite values are events of another kind, and zeros have no logarithm: both are left out as
    if they had not been measured. `mad_floor` (log units) keeps near-constant series quiet: at the
    defaults nothing below exp(6 * 0.01 / 0.6745) = 1.09 times the median is ever flagged. There
    is no minimum ratio in addition: a loss bounded by ln N may never reach 1.5 times its median.

    False alarms at the defaults, in simulated healthy series: independent lognormal values, any
    sigma well above the floor, 1 event in 2.4 million steps; AR(1) logs with coefficient .9, 1.3 in
    100,000 steps. The short first baseline adds an alarm in the first 150 steps of 0.2 % of
    independent and 1 % of AR(1) .9 series. Logs with heavier tails alarm more (Student t with 5
    degrees of freedom: 80 in 100,000 steps): calibrate `threshold` on healthy runs.

    Returns one row per event: onset, peak, end (steps of the first, largest and last flagged
    point), height (robust z of the peak), ratio (of the peak to the baseline median at that time).
    Raises ValueError for steps that do not increase, negative values, options out of range.
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
    logs = np.log(values)
    suspects = _suspects(logs, window, threshold, mad_floor)
    scorer = SpikeScorer(window, threshold, min_history, window // 2, mad_floor)
    points = _flagged(logs, scorer, suspects, window)
    flagged = np.array([point[0] for point in points], dtype=np.int64)
    heights, rises = (np.array([point[j] for point in points]) for j in (1, 2))
    restarted = np.array([point[3] for point in points], dtype=bool)
    new = begin_events(flagged, steps[flagged], restarted, merge)
    return _events(steps[flagged], values[flagged], heights, np.exp(rises), new)


def _flagged(
    logs: FloatArray, scorer: SpikeScorer, suspects: IntArray, window: int
) -> list[tuple[int, float, float, bool]]:
    """Return index, z, log ratio and whether the baseline restarted, for every flagged point.

    The result is the same as updating the scorer with every point. After `window` unflagged points
    the baseline is exactly the last `window` points, and no point before the next suspect can be
    flagged, so the scorer goes straight to that one.
    """
    points, values = [], logs.tolist()
    i = quiet = 0  # `quiet`: unflagged points in a row before i
    waiting = iter([*suspects.tolist(), len(values)])
    suspect = next(waiting)
    while i < len(values):
        if quiet >= window:
            while suspect < i:
                suspect = next(waiting)
            if suspect > i:
                if suspect == len(values):
                    break
                i = suspect
                scorer.go_on_from(values[i - window : i])
        score = scorer.update(values[i])
        quiet += 1
        if score is not None:
            points.append((i, *score, scorer.restarted))
            quiet = 0
        i += 1
    return points


def _suspects(logs: FloatArray, window: int, threshold: float, mad_floor: float) -> IntArray:
    """Return the indices that may be flagged if their baseline is the `window` points before them.

    One sort gives a lower bound on the bar of `stride` neighboring points. Their baselines overlap;
    each is a subset of their union. So the k-th smallest value of a baseline is at least that of
    the union, which bounds the median. Half of a baseline lies within one MAD of its median, so the
    MAD is at least half the length of the shortest interval of the union that holds as many values.
    """
    if logs.size <= window:
        return np.zeros(0, dtype=np.int64)
    stride = max(1, window // 4)
    tail = -(logs.size - window) % stride
    padded = np.concatenate([logs, np.full(tail, np.inf)])  # a larger union: the bounds still hold
    whole = np.sort(sliding_window_view(padded[:-1], window + stride - 1)[::stride], axis=1)
    half = (window + 1) // 2
    shortest = (whole[:, half - 1 :] - whole[:, : whole.shape[1] - half + 1]).min(axis=1)
    # Room for rounding: the last bit of a logarithm is at most 1e-13.
    mad = np.maximum(shortest / 2 - 1e-12, mad_floor)
    least = whole[:, (window - 1) // 2] + (1 - 1e-9) * threshold / Z_PER_MAD * mad - 1e-12
    return window + np.flatnonzero(logs[window:] >= np.repeat(least, stride)[: logs.size - window])


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
    step: IntArray, value: FloatArray, height: FloatArray, ratio: FloatArray, begin: IntArray
) -> pd.DataFrame:
    if not begin.size:  # most series are healthy: save the making of a frame
        return _NO_SPIKES.copy()
    bounds = list(zip(begin, [*begin[1:], step.size], strict=True))
    peak = np.array([a + int(np.argmax(value[a:b])) for a, b in bounds], dtype=np.int64)
    end = np.array([b - 1 for _, b in bounds], dtype=np.int64)
    return pd.DataFrame(
        {
            "onset": step[begin],
            "peak": step[peak],
            "end": step[end],
            "height": height[peak],
            "ratio": ratio[peak],
        }
    )


_INTEGERS, _FLOATS = ("onset", "peak", "end"), ("height", "ratio")
_COLUMNS = dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(_FLOATS, "float64")
_NO_SPIKES = pd.DataFrame(columns=list(_COLUMNS)).astype(_COLUMNS)
