"""Spikes: upward jumps of a positive series, such as a gradient norm or a loss."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.robust import BoolArray, FloatArray, IntArray, checked_series
from stabkit.detect.spike_scorer import Flagged, SpikeScorer

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
    points = SpikeScorer(window, threshold, min_history, mad_floor).add(np.log(values))
    if not points:  # most series are healthy: save the making of a frame
        return _NO_SPIKES.copy(deep=False)
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
    for a, b in zip(begin, [*begin[1:], len(points)], strict=True):
        event = points[a:b]
        peak = max(event, key=lambda point: float(values[point.at]))
        times = steps[[event[0].at, peak.at, event[-1].at]]
        rows.append((*times, peak.z, math.exp(peak.rise)))
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


_INTEGERS, _FLOATS = ("onset", "peak", "end"), ("height", "ratio")
_COLUMNS = dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(_FLOATS, "float64")
_NO_SPIKES = pd.DataFrame(columns=list(_COLUMNS)).astype(_COLUMNS)
