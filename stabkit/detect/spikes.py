"""Spikes: upward jumps of a positive series, such as a gradient norm or a loss."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.frames import rows_frame
from stabkit.detect.onsets import half_height_onset
from stabkit.detect.robust import BoolArray, FloatArray, IntArray, checked_series, ratio_of
from stabkit.detect.spike_scorer import Flagged, SpikeScorer

WINDOW = 100  # values that make a level, and errors that make a noise
BAR = 6.0  # deviations of WINDOW errors
MIN_HISTORY = 12  # values, before the first that can be flagged
MERGE = 10  # steps
COMMON = 0.75  # of the steps of a group of layers, at which each has a value
HOLE = 10  # values in a row that a layer of a group may lack
FLOOR = 0.01  # of the noise, log units


def find_spikes(
    step: ArrayLike,
    value: ArrayLike,
    *,
    window: int = WINDOW,
    threshold: float = BAR,
    min_history: int = MIN_HISTORY,
    merge: int = MERGE,
    mad_floor: float = FLOOR,
) -> pd.DataFrame:
    """Find points whose logarithm lies `threshold` robust deviations above what was expected.

    There are several predictors: the median of the last `window` points, and filters of level and
    slope, so that a spike is found on a falling curve too. It is enough to stand out for one of
    them. The noise is that of the last `window` errors of each. Points that are flagged move
    neither the predictors nor the noise, so spikes cannot hide one another. The first `min_history`
    points are the first history; with so few the bar is higher (`threshold` holds for `window`
    errors). A point is flagged only if it also exceeds the tail that the errors of the series show
    (18 deviations and more always do), so that heavy tails and saw teeth raise few alarms.

    An event goes on while points stay 2.5 deviations high. After window // 2 flagged points in a
    row (window // 5 on a trend) the level itself has moved: the event ends there and the history
    restarts from those points. Flagged points that are neighbors, or at most `merge` steps apart,
    are one event.

    Non-finite values are events of another kind, and zeros have no logarithm: both are left out as
    if they had not been measured. `mad_floor` (log units) keeps near-constant series quiet: at the
    defaults nothing below exp(6 * 0.01) = 1.06 times what was expected is ever flagged. There is no
    minimum ratio in addition: a loss bounded by ln N may never reach 1.5 times its median.

    Rates of false alarms and power, on stationary series and on trends: docs/error-rates.md.

    Returns one row per event: onset (the step at which it reached half of its own log height:
    `half_height_onset`), flagged, peak, end (steps of the first, largest and last flagged point),
    height (robust z of the peak), ratio (of the peak to what was expected there). Raises ValueError
    for steps that do not increase, negative values, options out of range.
    """
    if merge < 0:
        raise ValueError(f"merge must be 0 steps or more, got {merge}")
    steps, values = usable_series(step, value)
    scorer = _checked_scorer(window, threshold, min_history, mad_floor)
    return spike_rows(Scored(steps, values, scorer.add(np.log(values))), merge)


class Scored(NamedTuple):
    """Steps and values of a series, and the points that stand out; `at` is an index of both."""

    steps: IntArray
    values: FloatArray
    points: Sequence[Flagged]


def usable_series(step: ArrayLike, value: ArrayLike) -> tuple[IntArray, FloatArray]:
    """Return steps and values where the value is finite and not 0. Raises ValueError."""
    steps, values = checked_series(step, value, "value")
    negative = np.flatnonzero(np.isfinite(values) & (values < 0))
    if negative.size:
        i = int(negative[0])
        raise ValueError(
            f"value must not be negative (spikes are sought in its logarithm), got {values[i]} "
            f"at step {steps[i]}: give a norm, or a loss shifted to be bounded below by 0"
        )
    usable = np.isfinite(values) & (values > 0)
    return steps[usable], values[usable]


class Together(NamedTuple):
    """Layers that were measured together, and the logarithms of their values at all steps."""

    members: list[int]  # places of the layers
    steps: IntArray
    logs: FloatArray  # [members, steps]
    known: BoolArray  # [members, steps]: whether the value was measured, or else filled in


def measured_together(
    layers: Sequence[tuple[IntArray, FloatArray]], shortest: int
) -> list[Together]:
    """Divide layers, steps and values of each, into groups that were measured together.

    The steps of a group are those of all its layers. A layer may lack a quarter of them, but not
    more than `HOLE` in a row, and not the last. Where it has no value, the logarithm is that on the
    line between the values beside it. The steps before which a layer has none are left out. Layers
    with fewer than `shortest` values are in no group.
    """
    left = [i for i, (steps, _) in enumerate(layers) if len(steps) >= shortest]
    groups = []
    while left:
        longest = max((layers[i][0] for i in left), key=len)
        alike = [i for i in left if np.array_equal(layers[i][0], longest)]
        every, members = longest, alike
        if len(alike) < len(left):
            every = np.unique(np.concatenate([layers[i][0] for i in left]))
            # Of layers that differ too much, those with the steps of the longest are together.
            members = [i for i in left if _has_most(layers[i][0], every)] or alike
            every = np.unique(np.concatenate([layers[i][0] for i in members]))
            every = every[every >= max(layers[i][0][0] for i in members)]
        logs, known = np.empty((2, len(members), len(every)))
        for row, i in enumerate(members):
            steps, values = layers[i]
            whole = np.array_equal(steps, every)  # mostly; then nothing is filled in
            logs[row] = np.log(values) if whole else np.interp(every, steps, np.log(values))
            known[row] = whole or np.isin(every, steps)
        groups.append(Together(members, every, logs, known.astype(bool)))
        left = [i for i in left if i not in members]
    return groups


def _has_most(steps: IntArray, every: IntArray) -> bool:
    """Return whether a layer with these steps belongs to layers that have `every` step together."""
    at = np.searchsorted(every, steps)
    holes = np.diff(at, prepend=-1) - 1
    return bool(
        len(steps) >= COMMON * len(every) and holes.max() <= HOLE and at[-1] == len(every) - 1
    )


def _checked_scorer(
    window: int, threshold: float, min_history: int, mad_floor: float
) -> SpikeScorer:
    if not 2 <= min_history <= window:
        raise ValueError(f"min_history must be in 2..window ({window}), got {min_history}")
    if not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold must be a positive number, got {threshold}")
    if not mad_floor > 0:
        raise ValueError(f"mad_floor must be above 0, got {mad_floor}")
    return SpikeScorer(window, threshold, min_history, mad_floor)


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


def spike_rows(scored: Scored, merge: int = MERGE) -> pd.DataFrame:
    """Return the rows of `find_spikes` for the points of a series."""
    steps, values, points = scored
    if not points:  # most series are healthy: save the making of a frame
        return _NO_SPIKES.copy(deep=False)
    at = np.array([point.at for point in points], dtype=np.int64)
    begin = begin_events(at, steps[at], np.array([p.ends for p in points]), merge)
    rows = []
    logs, since = np.log(values), 0
    for a, b in zip(begin, [*begin[1:], len(points)], strict=True):
        event = points[a:b]
        peak = max(event, key=lambda point: float(values[point.at]))
        onset = half_height_onset(steps, logs, event[0].at, peak.at, since)
        since = event[-1].at + 1
        times = steps[[event[0].at, peak.at, event[-1].at]]
        rows.append((onset, *times, peak.z, ratio_of(peak.rise)))
    return rows_frame(rows, COLUMNS)


_INTEGERS, _FLOATS = ("onset", "flagged", "peak", "end"), ("height", "ratio")
COLUMNS = dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(_FLOATS, "float64")
_NO_SPIKES = rows_frame([], COLUMNS)
