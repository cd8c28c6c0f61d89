"""Swells: stretches of some steps in which a positive series stands above its level.

A spike stands out at a single step. A swell need not: its values are raised together, and then
come back.
"""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from stabkit.detect.frames import rows_frame
from stabkit.detect.robust import MAD_TO_STD, FloatArray, IntArray, median_of_sorted
from stabkit.detect.spikes import measured_together, usable_series

WIDTHS = (6, 8, 12, 16, 24, 32)  # values of a stretch
FLANK = 16  # values before and after it, at least; as many as it has itself if these are more
EARLY = 64  # values; in so many a norm may rise and fall as training begins
BAR = 5.5  # deviations above the higher flank
NEAR, SHARE = 4.75, 0.25  # the bar if so many of the layers pass it together
FEW, GROWTH = 2000, 1.75  # values of all layers; for ten times as many the bars rise by so much
FEWEST = 4  # layers; that fewer agree proves too little
SHORTEST = 60  # values; a shorter series does not show how stretches scatter
BEFORE, EVERY = 100, 20  # values that tell the noise of those that follow; how often it is renewed
SMOOTHED = 0.6  # deviation of a running median of 5 independent values; .54 if they are normal
FLOOR = 0.01  # of the noise, log units
LEAST = 0.1  # log units that a swell rises, so that near-constant series have none
TINY = 1e-6  # the scatter where all stretches are equal
SIDE, SIDE_NORMAL = 0.85, 1.0364  # quantile that tells the upper side; its value in normal noise

_INTEGERS, _FLOATS = ("onset", "end"), ("height", "ratio")
COLUMNS = dict.fromkeys(_INTEGERS, "int64") | dict.fromkeys(_FLOATS, "float64")
_NO_SWELLS = rows_frame([], COLUMNS)


def find_swells(step: ArrayLike, value: ArrayLike) -> pd.DataFrame:
    """Find stretches of 6 to 32 values that stand above the values before and after.

    A matched filter on the logarithm: the mean of every stretch, minus the higher one of the means
    of its two flanks. So a series that only rises, falls or shifts its level has no swell. As
    training begins, norms often rise and fall: there a stretch must also stand above the line
    through the values before it. Single values do not count: the series is smoothed by a running
    median of 5 first.

    The noise of a stretch is how much all stretches of that width scatter in this series, whatever
    the autocorrelation. It is relative to the noise of the 100 values before, because the noise may
    change during the series. A stretch must stand 5.5 deviations above its higher flank, and more
    in a series of more than 2,000 values (`find_layer_swells`). If stretches overlap, the one that
    stands out most is the swell.

    Unlike spikes, swells are found afterwards: they need the values that follow.

    Values that are not finite, and zeros, are left out. A series of fewer than 60 values has no
    swell. A rise by less than a tenth is no swell. Rates of false alarms: docs/error-rates.md.

    Returns one row per swell: onset, end (first and last step), height (deviations), ratio (to the
    higher flank, of geometric means). Raises ValueError for steps that do not increase and negative
    values.
    """
    return find_layer_swells([usable_series(step, value)])[0]


def find_layer_swells(layers: Sequence[tuple[IntArray, FloatArray]]) -> list[pd.DataFrame]:
    """Return the rows of `find_swells` for each layer, with the swells that layers share.

    `layers`: steps and values of each, as `usable_series` returns them. Where a quarter of the
    layers stand 4.75 deviations high in the same stretch, that is a swell of each of them. Both
    bars rise with the number of values of all layers, by 1.75 for ten times as many, from 2,000 on:
    so long runs of many layers have no more false swells. Where one layer passes the raised bar, or
    a quarter of them do, the others need not. Layers that were not measured together
    (`measured_together`) are judged alone.
    """
    found = [_NO_SWELLS.copy(deep=False) for _ in layers]
    for members, steps, logs, _ in measured_together(layers, SHORTEST):
        heights, rises = stretch_heights(logs)
        higher = GROWTH * math.log10(max(1.0, len(members) * len(steps) / FEW))
        sure = _passes(heights, rises, higher)
        if not sure.any():
            continue
        surest = [_rows(steps, *one) for one in zip(sure, heights, rises, strict=True)]
        spans = pd.concat(surest)[["onset", "end"]].to_numpy()
        for i, *one in zip(members, _passes(heights, rises, 0.0), heights, rises, strict=True):
            found[i] = _overlapping(_rows(steps, *one), spans)
    return found


def _passes(heights: FloatArray, rises: FloatArray, higher: float) -> NDArray[np.bool_]:
    """Return which stretches [layers, widths, first value] pass the bars, raised by `higher`."""
    near = heights >= NEAR + higher
    shared = (near.mean(axis=0) >= SHARE) & (len(heights) >= FEWEST)
    passed: NDArray[np.bool_] = (rises >= LEAST) & ((heights >= BAR + higher) | (shared & near))
    return passed


def _overlapping(rows: pd.DataFrame, spans: IntArray) -> pd.DataFrame:
    """Return the rows that overlap one of the spans [spans, 2]."""
    onset, end = rows[["onset", "end"]].to_numpy().T[:, :, None]
    overlaps = (onset <= spans[:, 1]) & (spans[:, 0] <= end)
    return rows[overlaps.any(axis=1)].reset_index(drop=True)


def stretch_heights(logs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return how high each stretch stands over its higher flank: in deviations, and in log units.

    logs [series, values] -> twice [series, widths, first value]; -inf where flanks are incomplete.
    """
    count, n = logs.shape
    smooth = _smoothed(logs)
    noise = _noise_before(logs, smooth)
    sums = np.concatenate([np.zeros((count, 1)), np.cumsum(smooth, axis=1)], axis=1)
    heights = np.full((count, len(WIDTHS), n), -np.inf)
    rises = np.full((count, len(WIDTHS), n), -np.inf)
    least: FloatArray = np.zeros((count, 1))
    for i, width in enumerate(WIDTHS):
        flank = max(width, FLANK)
        first, last = flank, n - width - flank  # of the first values that have both flanks
        if last - first < 2 * width:
            break
        ends = [sums[:, a : a + last - first + 1] for a in (0, flank, flank + width)]
        after_end = sums[:, 2 * flank + width : 2 * flank + width + last - first + 1]
        before, inside = (ends[1] - ends[0]) / flank, (ends[2] - ends[1]) / width
        after = (after_end - ends[2]) / flank
        local = noise[:, first - 1 : last]  # of the values before
        both = (inside - (before + after) / 2) / local
        # Only about n / width stretches are independent of each other, so that a short series shows
        # too small a scatter. 4: by eye from simulated noise; the bar is set with it.
        scale = np.maximum(_scatter(both), least) * (1 + 4 * width / n)
        # The mean of a wider stretch scatters less if the noise is independent, and more if the
        # series wanders. Few wide stretches may seem to scatter less than independent noise does:
        # that is chance, and not believed.
        least = np.maximum(_scatter(both), least) * np.sqrt(
            width / WIDTHS[min(i + 1, len(WIDTHS) - 1)]
        )
        level = np.maximum(before, after)
        early = min(EARLY, level.shape[1])
        level[:, :early] = np.maximum(level, _continued(sums, first, flank, width, before))[
            :, :early
        ]
        rise = inside - level
        rises[:, i, first : last + 1] = rise
        heights[:, i, first : last + 1] = rise / local / scale
    return heights, rises


def _continued(
    sums: FloatArray, first: int, flank: int, width: int, before: FloatArray
) -> FloatArray:
    """Return the mean of each stretch if the values before it went on as they rose or fell."""
    half = flank // 2
    count = before.shape[1]
    late = (sums[:, first : first + count] - sums[:, first - half : first - half + count]) / half
    slope = 2 * (late - before) / half
    continued: FloatArray = before + slope * (flank + width) / 2
    return continued


def _scatter(values: FloatArray) -> FloatArray:
    """Return a robust deviation of each row around 0 [rows, 1], of its upper side if that is more.

    So skewed noise, which has its rare large values above, is not taken for swells.
    """
    sizes = np.sort(np.abs(values), axis=1)
    spread = MAD_TO_STD * median_of_sorted(sizes)
    upper = np.sort(values, axis=1)[:, int(SIDE * (values.shape[1] - 1))] / SIDE_NORMAL
    scatter: FloatArray = np.maximum(np.maximum(spread, upper), TINY)[:, None]
    return scatter


def _smoothed(logs: FloatArray) -> FloatArray:
    """Return the running median of five values of each row."""
    padded = np.pad(logs, ((0, 0), (2, 2)), mode="edge")
    smooth: FloatArray = np.sort(sliding_window_view(padded, 5, axis=1), axis=2)[:, :, 2]
    return smooth


def _noise_before(logs: FloatArray, smooth: FloatArray) -> FloatArray:
    """Return the deviation of single values in the BEFORE values up to each value.

    The larger of two: from changes to the next value, and from changes of the smoothed values over
    five, which show noise that wanders. Both are without the trend. The first BEFORE values share
    theirs, and it is renewed every EVERY values.
    """
    sudden = _changes(logs, 1)
    wandering = _changes(smooth, 5) / SMOOTHED
    return np.maximum(FLOOR, np.maximum(sudden, wandering))


def _changes(values: FloatArray, lag: int) -> FloatArray:
    changes = values[:, lag:] - values[:, :-lag]
    size = min(BEFORE, changes.shape[1])
    windows = sliding_window_view(changes, size, axis=1)[:, ::EVERY]
    off = np.abs(windows - np.median(windows, axis=2, keepdims=True))
    scale = MAD_TO_STD / 2**0.5 * np.median(off, axis=2)
    known = np.arange(scale.shape[1]) * EVERY + size + lag - 1  # last value of each window
    which = np.searchsorted(known, np.arange(values.shape[1]), side="right") - 1
    noise: FloatArray = scale[:, np.maximum(which, 0)]
    return noise


def _rows(
    steps: IntArray, passed: NDArray[np.bool_], heights: FloatArray, rises: FloatArray
) -> pd.DataFrame:
    """Return a row for each stretch that passes and is the highest of all it overlaps.

    All are [widths, first value].
    """
    width, first = np.nonzero(passed)
    order = np.argsort(-heights[width, first], kind="stable")
    taken = np.zeros(len(steps), dtype=bool)
    rows = []
    for i, a in zip(width[order], first[order], strict=True):
        b = a + WIDTHS[i]
        if not taken[a:b].any():
            taken[a:b] = True
            rows.append((steps[a], steps[b - 1], heights[i, a], np.exp(rises[i, a])))
    return rows_frame(rows, COLUMNS).sort_values("onset", ignore_index=True)
