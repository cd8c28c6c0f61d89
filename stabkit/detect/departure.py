"""Departure: a loss that leaves its best level and does not come back."""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.frames import rows_frame
from stabkit.detect.robust import MAD_TO_STD, FloatArray, checked_series

# The end level over the best one was 1.45 to 1.72 in three language models that left for good, and
# at most 1.33 in fifteen other logs of real trainings.
RATIO = 1.4
LOST = 0.5  # share of what was gained; for a series with negative values, which have no ratio
NOISE = 3.0  # the distance must exceed so many robust deviations of single values
SHORTEST = 20  # values
COLUMNS = {
    "onset": "int64", "end": "int64", "best": "float64", "level": "float64", "ratio": "float64",
}  # fmt: skip


def find_departure(step: ArrayLike, loss: ArrayLike) -> pd.DataFrame:
    """Find the step from which a loss stays above its best level until the run ends.

    The best level is the lowest running median, over a twentieth of the run, before the last fifth.
    The end level is the median of the last fifth. The loss has left if the end level is RATIO times
    the best one or more; where values are negative, if it lost half of what it had gained since the
    first level. Both distances must exceed the noise of single values. A slow rise counts like a
    sudden one.

    Returns at most one row: onset (the first step after the loss was last near its best level),
    end (the last step), best and level (both levels), ratio (of the two, or NaN with negative
    values). Non-finite values are left out. This is a threshold, not a test.
    """
    steps, values = checked_series(step, loss, "loss")
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(values) < SHORTEST:
        return rows_frame([], COLUMNS)
    positive = bool((values > 0).all())
    y: FloatArray = np.log(values) if positive else values
    width = max(5, len(y) // 20) | 1
    running = pd.Series(y).rolling(width, center=True, min_periods=width // 2 + 1).median()
    middle = running.to_numpy()
    last = max(1, round(len(y) / 5))
    at = int(middle[:-last].argmin())
    best, level = float(middle[at]), float(np.median(y[-last:]))
    far = math.log(RATIO) if positive else LOST * max(float(middle[0]) - best, 0.0)
    noise = MAD_TO_STD * float(np.median(np.abs(y - middle)))
    rise = level - best
    if not (rise >= far and rise > NOISE * noise and rise > 0):
        return rows_frame([], COLUMNS)
    near = at + int(np.flatnonzero(middle[at:] <= best + rise / 4)[-1])
    onset = steps[min(near + 1, len(steps) - 1)]
    levels = (math.exp(best), math.exp(level)) if positive else (best, level)
    ratio = math.exp(rise) if positive else math.nan
    return rows_frame([(onset, steps[-1], *levels, ratio)], COLUMNS)
