"""Predict a value from those before it: a rolling median, and filters of level and slope."""

import math
from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from stabkit.detect.robust import FloatArray, median_of_sorted

# Gains of level and slope of the trend filters: one for noisy series, which remembers some 5 values
# and the slope of 50, and one for smooth series that bend, such as the first steps of a loss.
GAINS = ((0.2, 0.02), (0.6, 0.2))
CLIP = 2.5  # mean absolute errors, 2 deviations; one value moves a filter by no more than this
SCALE_GAIN, SCALE_CLIP = 0.05, 4.0  # for the mean absolute error, where outliers are clipped too


class Trend(NamedTuple):
    """A filter of level and slope (Holt 1957). `scale` is its recent mean absolute error."""

    level: float
    slope: float
    scale: float


def follow(
    trend: Trend, values: FloatArray, gain: float, slope_gain: float, floor: float
) -> tuple[FloatArray, Trend]:
    """Return the errors of a filter at each value, and the filter after the last."""
    level, slope, scale = trend
    errors = []
    for value in values.tolist():
        level += slope
        error = value - level
        errors.append(error)
        size = error if error > 0 else -error
        if size <= CLIP * scale:
            level += gain * error
            slope += slope_gain * error
            scale += SCALE_GAIN * (size - scale)
        else:
            step = math.copysign(CLIP * scale, error)
            level += gain * step
            slope += slope_gain * step
            scale += SCALE_GAIN * (min(size, SCALE_CLIP * scale) - scale)
        if scale < floor:
            scale = floor
    return np.array(errors), Trend(level, slope, scale)


def line(values: FloatArray) -> tuple[float, float]:
    """Return the end of a robust line through the values, and its slope (Theil 1950, Sen 1968)."""
    n = len(values)
    slopes = [(values[gap:] - values[:-gap]) / gap for gap in range(1, n)]
    slope = median(np.concatenate(slopes))
    return median(values - slope * np.arange(1 - n, 1)), slope


def median(values: FloatArray) -> float:
    return float(median_of_sorted(np.sort(values)))


def rolling_median(values: FloatArray, window: int, since: int) -> FloatArray:
    """Return, for each value from index `since` on, the median of up to `window` before it."""
    known = values.tolist()
    ordered = sorted(known[max(0, since - window) : since])
    full = max(since, window)
    medians = []
    for i in range(since, min(full, len(known))):
        n = len(ordered)
        medians.append((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
        insort(ordered, known[i])
    low, high = (window - 1) // 2, window // 2
    for oldest, value in zip(known[full - window :], known[full:], strict=False):
        medians.append((ordered[low] + ordered[high]) / 2)
        del ordered[bisect_left(ordered, oldest)]
        insort(ordered, value)
    return np.array(medians)
