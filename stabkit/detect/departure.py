"""A loss that leaves its best level: for good (departure), or for long (long rise)."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.frames import rows_frame
from stabkit.detect.robust import (
    MAD_TO_STD,
    FloatArray,
    IntArray,
    checked_series,
    ratio_of,
    rounded_by,
)
from stabkit.detect.spikes import COLUMNS as SPIKE_COLUMNS
from stabkit.detect.spikes import MIN_HISTORY

# The end level over the best one was 1.45 to 1.72 in three language models that left for good, and
# at most 1.33 in fifteen other logs of real trainings.
RATIO = 1.4
ABOVE_BEST = 1.15  # the same for a loss that did not leave, but ended above its best level
# A rise that passes: its ratio, and the share of what was gained that it loses. A learning rate
# that restarts raises a loss for a while as well, by a tenth of what was gained.
LONG_RATIO, LONG_LOST = 2.0, 0.25
LOST = 0.5  # share of what was gained; for a series with negative values, which have no ratio
# The distance must exceed so many robust deviations of single values. A rise is the largest of
# many distances, which is larger by chance than that of the end from the best level.
NOISE, RISE_NOISE = 3.0, 4.0
# The distance must be so many times the largest earlier rise of the running median that came back,
# unless it is twice as large as needed: a loss may wander. Set on AR(1) noise (.9, 20 % in logs),
# and on losses that left for good, none of which was lost.
WANDERS = 1.5
# A loss that explodes among its first values leaves no median behind. Contrastive losses rise there
# too, by less.
FIRST, EXPLODED, AT_ONCE = 5, 10.0, 3.0
SHORTEST = MIN_HISTORY + 1  # values: as many as a spike needs
# Medians are over a twentieth of the run. A rise that is too short for it shows in those over a two
# hundredth, where that is enough values to be as sure.
WIDE, NARROW, ENOUGH = 20, 200, 25
COLUMNS = {
    "onset": "int64", "end": "int64", "best": "float64", "level": "float64", "ratio": "float64",
}  # fmt: skip


def find_departure(step: ArrayLike, loss: ArrayLike, *, ratio: float = RATIO) -> pd.DataFrame:
    """Find the step from which a loss stays above its best level until the run ends.

    The best level is the lowest running median, over a twentieth of the run, before the last fifth.
    The end level is the median of the last fifth. The loss has left if the end level is `ratio`
    times the best one or more; where values are negative, if it lost half of what it had gained
    since the first level. Both distances must exceed the noise of single values and the rounding of
    printed ones. The last running median must not be back, at a quarter of the distance. A distance
    less than twice as large as needed (in the logarithm) must also exceed the earlier rises that
    came back, by half, since a loss may wander. A slow rise counts like a sudden one. A loss that
    explodes at its beginning has left as well: it ends at ten times the second lowest of its first
    five values, and triples from one value to the next before the first median.

    Returns at most one row: onset (the first step after the loss was last near its best level),
    end (the last step), best and level (both levels), ratio (of the two, or NaN with negative
    values). Non-finite values are left out. This is a threshold, not a test.

    Raises ValueError unless `ratio` is above 1.
    """
    if not ratio > 1:
        raise ValueError(f"ratio must be above 1, got {ratio}")
    steps, values = _finite(step, loss)
    if len(values) < SHORTEST:
        return rows_frame([], COLUMNS)
    positive = bool((values > 0).all())
    y: FloatArray = np.log(values) if positive else values
    middle = _running_median(y, WIDE)
    last = max(1, round(len(y) / 5))
    at = int(middle[:-last].argmin())
    best, level = float(middle[at]), float(np.median(y[-last:]))
    far = math.log(ratio) if positive else LOST * max(float(middle[0]) - best, 0.0)
    noise = _noise(y, middle, WIDE)
    rise = level - best
    if positive and _explodes(y, level, noise):
        at, best = 0, float(np.sort(y[:FIRST])[1])
        rise, middle, far = level - best, y, 0.0
    elif not (rise >= far and rise > NOISE * noise and rise > 0):
        return rows_frame([], COLUMNS)
    near = at + int(np.flatnonzero(middle[at:] <= best + rise / 4)[-1])
    if near == len(middle) - 1:  # back at the very end
        return rows_frame([], COLUMNS)
    if rise < min(WANDERS * _largest_rise(middle[: near + 1]), 2 * far):
        return rows_frame([], COLUMNS)
    # A slow rise begins where it leaves the noise, not at a quarter of its height.
    left = best + min(rise / 4, max(rise / 10, noise))
    onset = steps[at + int(np.flatnonzero(middle[at:] <= left)[-1]) + 1]
    levels = (math.exp(best), math.exp(level)) if positive else (best, level)
    if levels[1] - levels[0] < rounded_by(values):
        return rows_frame([], COLUMNS)
    found = ratio_of(rise) if positive else math.nan
    return rows_frame([(onset, steps[-1], *levels, found)], COLUMNS)


def _largest_rise(middle: FloatArray) -> float:
    """Return the largest distance of a value from the lowest one before it."""
    return float((middle - np.minimum.accumulate(middle)).max())


def _explodes(y: FloatArray, level: float, noise: float) -> bool:
    """Return whether a log loss leaves the level of its first values, all at once, for good."""
    begin = y[: _width(y, WIDE)]
    return bool(
        level - np.sort(y[:FIRST])[1] >= max(math.log(EXPLODED), RISE_NOISE * noise)
        and np.diff(begin).max() >= math.log(AT_ONCE)
    )


def find_long_rises(step: ArrayLike, loss: ArrayLike) -> pd.DataFrame:
    """Find where a loss rises far above its best level so far, for long, and comes back.

    A loss that climbs for hundreds of steps is no spike: each value is what those before lead to
    expect. Levels are those of `find_departure`. The loss must rise to LONG_RATIO times the lowest
    level before, lose a quarter of what it had gained since its first level, and exceed the noise
    of single values. It is back at a quarter of the rise (of the logarithm), and at RATIO times the
    lowest level or less. One that is not back at the end is a departure if it lasted a tenth of the
    run, and else a long rise that ends with the run. In a series with values of 0 all values below
    its scatter count as large as that: near 0 they have no ratio. In a series with negative values
    no rise is found. Rises that are short for a long run are searched
    with narrower medians (NARROW).

    Returns one row for each, with the columns of `find_spikes`: onset (the last step near the best
    level), flagged (the first above it), peak (the highest level), end (the last step before it is
    back), height (in robust deviations of single values), ratio (of the highest level to the lowest
    before). Non-finite values are left out. This is a threshold, not a test.
    """
    steps, values = _finite(step, loss)
    if len(values) < SHORTEST or (values < 0).any() or not values.any():
        return rows_frame([], SPIKE_COLUMNS)
    y = np.log(np.maximum(values, _least(values)))
    rows = _rises(steps, y, WIDE)
    if len(y) >= NARROW * ENOUGH:
        for row in _rises(steps, y, NARROW):
            if all(row[3] < begin or end < row[0] for begin, *_, end, _, _ in rows):
                rows.append(row)
    if len(find_departure(steps, values)):  # the last rise is for good
        rows = [row for row in rows if row[3] < steps[-1]]
    return rows_frame(sorted(rows), SPIKE_COLUMNS)


def _least(values: FloatArray) -> float:
    """Return the least value that has a logarithm to compare: the scatter, where some are 0."""
    least = float(values[values > 0].min())
    if (values > 0).all():
        return least
    off = np.abs(values - _running_median(values, WIDE))
    return max(least, MAD_TO_STD * float(np.median(off)))


_Row = tuple[int, int, int, int, float, float]


def _rises(steps: IntArray, y: FloatArray, share: int) -> list[_Row]:
    """Return the rows of long rises of a log loss, by medians over a `share`-th of the run."""
    middle = _running_median(y, share)
    noise = _noise(y, middle, share)
    best = np.minimum.accumulate(middle)
    gained, lost = np.exp(middle[0]) - np.exp(best), np.exp(middle) - np.exp(best)
    far = (middle - best >= max(math.log(LONG_RATIO), RISE_NOISE * noise)) & (
        lost >= LONG_LOST * gained
    )
    rows: list[_Row] = []
    behind = 0
    for at in np.flatnonzero(far).tolist():
        if at < behind:
            continue
        low = float(best[at])
        # The highest level before the loss is back at its best one gives what is left of a rise.
        below = np.flatnonzero(middle[at:] <= low)
        peak = at + int(middle[at : at + below[0] if below.size else None].argmax())
        near = low + min((float(middle[peak]) - low) / 4, math.log(RATIO))
        back = np.flatnonzero(middle[peak:] <= near)
        behind = peak + int(back[0]) if back.size else len(y)
        onset = int(np.flatnonzero(middle[:at] <= near)[-1])
        height = (float(middle[peak]) - low) / max(noise, 1e-12)
        ratio = ratio_of(float(middle[peak]) - low)
        first, flagged, highest, end = steps[[onset, onset + 1, peak, behind - 1]].tolist()
        rows.append((first, flagged, highest, end, height, ratio))
    return rows


def _finite(step: ArrayLike, loss: ArrayLike) -> tuple[IntArray, FloatArray]:
    steps, values = checked_series(step, loss, "loss")
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _width(y: FloatArray, share: int) -> int:
    """Return how many values a `share`-th of the run has, at least five; an odd number."""
    return max(5, len(y) // share) | 1


def _noise(y: FloatArray, middle: FloatArray, share: int) -> float:
    """Return the standard deviation of single values around `middle`, those of `_running_median`.

    Each value is among those of its median, so it lies nearer to it than to the true level: by a
    share of 1.3 / width, measured on normal noise (5 to 51 values, to within .02).
    """
    near = 1 - 1.3 / _width(y, share)
    return MAD_TO_STD * float(np.median(np.abs(y - middle))) / near


def _running_median(y: FloatArray, share: int) -> FloatArray:
    """Return medians over a `share`-th of the run."""
    width = _width(y, share)
    middle: FloatArray = (
        pd.Series(y).rolling(width, center=True, min_periods=width // 2 + 1).median().to_numpy()
    )
    return middle
