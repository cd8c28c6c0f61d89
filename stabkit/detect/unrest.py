"""Unrest: values that swing far more than they did before in the same run."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from stabkit.detect.frames import rows_frame
from stabkit.detect.robust import (
    MAD_TO_STD,
    BoolArray,
    FloatArray,
    IntArray,
    check_accuracy,
    checked_series,
    rounded_by,
    stretches,
)

# All numbers were set on simulated runs (`stabkit.detect.simulate`, seeds from 5,000,000 on), so
# that at most 1 % of the healthy runs of each kind alarm.


class _Bars(NamedTuple):
    """How far values must swing.

    ratio: scatter over that of the quiet stretch; least: scatter, as a fraction or of the log;
    width, quiet: values in a stretch and in a quiet one, at least.
    """

    ratio: float
    least: float
    width: int
    quiet: int


# Healthy noise of an accuracy grows threefold, and the scatter of a few values by chance.
ACCURACY = _Bars(5.0, 0.04, 12, 20)
# The log of a loss scatters more from the start, and its noise grows fourfold in healthy runs.
LOSS = _Bars(8.0, 0.35, 40, 40)
SAMPLING = 3.0  # times the standard deviation that the sampling of the evaluated data explains
LEARNED = 2.0  # times: how far the level of the quiet stretch may be from that of the swings
AROUND = 6  # blocks in a stretch, at least: those of one and a half swings, up and down
STRETCH, QUIET = 20, 4  # a stretch is a twentieth of the run or more, a quiet one a quarter
BLOCKS, LARGEST = 60, 3  # a block is at most a sixtieth of the run, or of three values
WIDER = 1.4  # times: from one size of block to the next
CALM = 0.5  # of the bar: unrest begins and ends where its scatter passes it
BETWEEN = (5, 95)  # percent of the values in a stretch, between which it is told to swing
EXACT = 1e-9  # scatter that stands for none
HOPS = 4  # stretches begin at every quarter of their width
COLUMNS = {
    "onset": "int64", "end": "int64", "low": "float64", "high": "float64", "scatter": "float64",
    "before": "float64", "ratio": "float64",
}  # fmt: skip


def find_unrest(step: ArrayLike, accuracy: ArrayLike, n: ArrayLike | None = None) -> pd.DataFrame:
    """Find stretches in which an accuracy swings far more than it did before in the same run.

    accuracy [evals] in 0..1 (NaN: left out); n: samples evaluated, one number or [evals]. Without
    n, the smallest distance of two accuracies counts as one sample.

    Means of one or more evaluations in a row (blocks) are compared with those before and after. A
    rise, a single step or a dip moves few of these differences; a swing moves most. Their
    interquartile range, as the standard deviation of normal noise, is the scatter of a stretch. It
    is unrest if the scatter is

    - 5 times that of an earlier stretch of a quarter of the run, or more,
    - 4 points or more, and
    - 3 times what independent draws of n samples explain.

    The level of the earlier stretch must be at least half of that of the swings: while nothing is
    learned, an accuracy hardly scatters. Swings that take a tenth of the run each are missed, and
    so are all in fewer than about 40 evaluations, and those that last for less than 12 or for less
    than a fortieth of the run.

    Returns one row for each, with the columns onset (the first step that swings, to within a
    quarter of a stretch), end (the last), low and high (the range of nine tenths of its values),
    scatter (the largest, a fraction: that of normal noise which swings as far), before (scatter of
    the quiet stretch), ratio (of both). Raises ValueError for steps that do not increase,
    accuracies outside 0..1, and counts below 1 or of another number. This is a threshold, not a
    test.
    """
    steps, values = checked_series(step, accuracy, "accuracy")
    check_accuracy(steps, values)
    seen = np.isfinite(values)
    steps, y = steps[seen], values[seen]
    samples = _fewest_samples(y)
    if n is not None:
        counts = np.asarray(n, dtype=np.float64)
        if counts.shape not in ((), values.shape) or not np.all(counts >= 1):
            raise ValueError(f"n must be 1 or more, or [{values.size}] such numbers, got {n!r}")
        samples = float(counts.min(initial=np.inf))

    def least(level: FloatArray) -> FloatArray:
        sampling: FloatArray = np.sqrt(level * (1 - level) / samples)
        return np.maximum(SAMPLING * sampling, ACCURACY.least)

    def learned(before: FloatArray, level: FloatArray) -> BoolArray:
        enough: BoolArray = before >= level / LEARNED
        return enough

    return _unrest(steps, y, y, ACCURACY, least, learned)


def find_loss_unrest(step: ArrayLike, loss: ArrayLike) -> pd.DataFrame:
    """Find stretches in which a loss swings far more than it did before in the same run.

    The loss must be above 0 throughout; otherwise nothing is found. The search is that of
    `find_unrest` on logarithms: the scatter must be 8 times that of the earlier stretch, .35
    or more, and more than the rounding of printed values explains. The level of the earlier stretch
    must be at most twice that of the swings: near 0 the logarithm of a healthy loss scatters more
    and more. Fewer than about 100 values show no unrest. Non-finite values are left out.

    Returns the columns of `find_unrest`; scatter and before are those of the logarithm. Raises
    ValueError for steps that do not increase. This is a threshold, not a test.
    """
    steps, values = checked_series(step, loss, "loss")
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if (values <= 0).any():
        return rows_frame([], COLUMNS)
    rounding = rounded_by(values)

    def least(level: FloatArray) -> FloatArray:
        return np.maximum(rounding / np.exp(level), LOSS.least)

    def learned(before: FloatArray, level: FloatArray) -> BoolArray:
        enough: BoolArray = before <= level + math.log(LEARNED)
        return enough

    return _unrest(steps, values, np.log(values), LOSS, least, learned)


def _fewest_samples(accuracy: FloatArray) -> float:
    """Return the least number of samples of which all accuracies can be shares."""
    apart = np.diff(np.unique(np.round(accuracy, 6)))  # what was computed twice may differ after it
    return 1 / float(apart.min()) if apart.size else 1.0


_Least = Callable[[FloatArray], FloatArray]  # the least scatter that counts at these levels
# whether enough was learned before: of levels of quiet stretches, and of those of later ones
_Learned = Callable[[FloatArray, FloatArray], BoolArray]
_Row = tuple[int, int, float, float]  # first and last index, scatter, that of the quiet stretch


def _unrest(
    steps: IntArray,
    values: FloatArray,
    y: FloatArray,
    bars: _Bars,
    least: _Least,
    learned: _Learned,
) -> pd.DataFrame:
    """Return the unrest of y in blocks of the size that shows it most clearly.

    `values` are what low and high are told of.
    """
    highest, rows = 0.0, list[_Row]()
    for block in _blocks(y.size):
        over, found = _swinging(y, block, bars, least, learned)
        if over > highest:
            highest, rows = over, found
    return rows_frame(
        [
            (
                *(steps[first], steps[last], *np.percentile(values[first : last + 1], BETWEEN)),
                *(scatter, before, scatter / max(before, EXACT)),
            )
            for first, last, scatter, before in rows
        ],
        COLUMNS,
    )


def _blocks(size: int) -> list[int]:
    """Return how many values the blocks have: 1, 2, 3, 4, 6, 8, 11, ..."""
    block, found = 1, []
    while block <= max(LARGEST, size // BLOCKS):
        found.append(block)
        block = max(block + 1, round(WIDER * block))
    return found


def _swinging(
    y: FloatArray, block: int, bars: _Bars, least: _Least, learned: _Learned
) -> tuple[float, list[_Row]]:
    """Return the largest scatter over its bar, and the stretches above the bar."""
    swings = _swings(y, block)
    width = max(y.size // STRETCH, AROUND * block, bars.width)
    quiet_width = max(y.size // QUIET, AROUND * block, bars.quiet)
    if swings.size < width + quiet_width:
        return 0.0, []
    first = block + (block - 1) // 2  # the value in the middle of the first swing
    level = y[first : first + swings.size]
    at, quiet_at = _places(swings.size, width), _places(swings.size, quiet_width)
    scatter, quiet = _scatter(swings, at, width), _scatter(swings, quiet_at, quiet_width)
    levels, quiet_levels = _levels(level, at, width), _levels(level, quiet_at, quiet_width)
    earlier = quiet_at + quiet_width <= at[:, None]
    usable = earlier & learned(quiet_levels, levels[:, None])
    before = np.where(usable, quiet, np.inf).min(axis=1)
    over = scatter / np.maximum(least(levels), bars.ratio * before)
    middle = first + at + width // 2
    ends = np.append(middle[:-1], y.size - 1)  # the last stretch swings to the end
    rows = list[_Row]()
    for begin, stop in stretches(over >= CALM):
        top = begin + int(over[begin:stop].argmax())
        if over[top] < 1:
            continue
        row = int(middle[begin]), int(ends[stop - 1]), float(scatter[top]), float(before[top])
        rows.append(row)
    return float(over.max()), rows


def _swings(y: FloatArray, block: int) -> FloatArray:
    """Return how far the mean of each block lies from the line between the two beside it.

    The scale is that of single blocks, if these are independent.
    """
    total = np.concatenate([[0.0], np.cumsum(y)])
    means = (total[block:] - total[:-block]) / block
    beside = (means[: -2 * block] + means[2 * block :]) / 2
    apart: FloatArray = (means[block:-block] - beside) / 1.5**0.5
    return apart


def _places(size: int, width: int) -> IntArray:
    """Return where stretches of `width` values begin; the last ends with the values."""
    places = np.arange(0, size - width + 1, max(1, width // HOPS))
    return np.unique(np.append(places, size - width))


def _scatter(swings: FloatArray, at: IntArray, width: int) -> FloatArray:
    """Return the standard deviation of normal noise with the interquartile range of a stretch.

    A bend of the curve moves both quartiles. Swings that alternate lie at the two quartiles, where
    their median would be one of them by chance.
    """
    low, high = np.percentile(sliding_window_view(swings, width)[at], (25, 75), axis=1)
    scatter: FloatArray = (high - low) / 2 * MAD_TO_STD
    return scatter


def _levels(values: FloatArray, at: IntArray, width: int) -> FloatArray:
    levels: FloatArray = np.median(sliding_window_view(values, width)[at], axis=1)
    return levels
