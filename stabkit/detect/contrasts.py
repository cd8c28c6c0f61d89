"""Contrasts of a series: how far a window lies below the level around it, in standard errors.

A window [i, j) of w values is compared with two flanks, of m values before and after it:

    depth = reference - mean(window),   z = depth / standard error of the contrast under AR(1) noise

The reference is the lower of two lines. No concave curve lies below the first, from the mean of one
flank to the mean of the other. No convex curve lies below the second, which carries the level
before on along the lesser of two slopes: the one before the window, and the one across it. So a
healthy curve, which bends one way at a time, lies below neither. A window that reaches the end of
the series has no flank after it, and its reference is the level before.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.detect.robust import FloatArray, IntArray

# A flank is as long as its window, within these bounds (evaluations). Fewer values make a level
# that is mostly noise; over more of them an accuracy curve bends.
SHORTEST_FLANK, LONGEST_FLANK = 3, 12
# Evaluations that give the slope before a window, and how far it is carried on: its error grows
# with the distance.
SLOPE_OVER, CARRIED = 10, 6
EDGES = (1, 2, 3, 5)  # evaluations on either side of an edge: sharp ones, and ones lost in noise
ONWARD = 5  # evaluations that give the slope after an edge
GROWTH = 1.25  # ratio of successive window widths: any dip fills most of some window


@dataclass(frozen=True)
class Windows:
    """Candidate windows as arrays [windows]: first index, index behind the last, depth, z, fall.

    `z` and `fall` hold for noise of unit standard deviation: divide them by that of the series.
    """

    start: IntArray
    stop: IntArray
    depth: FloatArray
    z: FloatArray
    fall: FloatArray


def scan(values: FloatArray, ar: float) -> Windows:
    """Return every window of two values to half of the series, and every window to its end.

    Widths grow by GROWTH. `ar` is the AR(1) coefficient of the noise, rounded to one decimal so
    that standard errors can be cached. `fall` is the largest drop between neighboring means of 1,
    2, 3 or 5 values at the start of the window, beyond a decline that went on before. It tells a
    dip from a stall of a rising curve, which lies below its trend although nothing falls there.
    """
    size, ar = values.size, round(ar, 1)
    drops = _drops(values, ar)
    parts = [
        _of_width(values, drops, np.arange(SHORTEST_FLANK, size - width - SHORTEST_FLANK + 1),
                  width, ar)
        for width in _widths(size)
    ]  # fmt: skip
    parts += [_to_the_end(values, drops, ar)]
    return Windows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def width_count(size: int) -> int:
    """Return how many windows begin at one evaluation, for the correction for many tests."""
    return len(_widths(size))


def weights_of(size: int, start: int, stop: int) -> FloatArray:
    """Return weights [size] whose sum over values is the depth below the line between flanks."""
    before, after = _flanks(stop - start, np.array(start), size - stop)
    return _weights(size, start, stop, int(before), int(after))


def reference(values: FloatArray, start: int, stop: int) -> FloatArray:
    """Return the line [evals] that a window is measured against; flat if it reaches the end."""
    size = values.size
    before, after = (int(m) for m in _flanks(stop - start, np.array(start), size - stop))
    level = float(values[start - before : start].mean())
    t = np.arange(size) - (start - (before + 1) / 2)  # 0 at the middle of the flank before
    if stop == size:
        return np.full(size, level)
    across = (float(values[stop : stop + after].mean()) - level) / (
        (before + after) / 2 + stop - start
    )
    slope = min(across, max(0.0, float(_slopes(values, SLOPE_OVER)[start])))
    carried = np.minimum(t, CARRIED) if slope != across else t
    return np.asarray(level + slope * carried, dtype=np.float64)


Part = tuple[IntArray, IntArray, FloatArray, FloatArray, FloatArray]


def _of_width(
    values: FloatArray, drops: FloatArray, start: IntArray, width: int, ar: float
) -> Part:
    size = values.size
    stop = start + width
    before, after = _flanks(width, start, size - stop)
    total = np.concatenate([[0.0], np.cumsum(values)])
    inside = (total[stop] - total[start]) / width
    level = (total[start] - total[start - before]) / before
    later = (total[stop + after] - total[stop]) / after
    # The middle of the window lies this share of the way from the middle of one flank to the other.
    share = ((before + width) / 2) / ((before + after) / 2 + width)
    across = (later - level) / ((before + after) / 2 + width)
    slope = np.clip(np.minimum(across, _slopes(values, SLOPE_OVER)[start]), 0.0, None)
    line = (1 - share) * level + share * later
    carried = level + slope * np.minimum((before + width) / 2, CARRIED)
    depth = np.minimum(line, carried) - inside
    error = np.array(
        [_error(width, b, a, ar) for b, a in zip(before.tolist(), after.tolist(), strict=True)]
    )
    return start, stop, depth, depth / error, _fall(drops, start, width)


def _to_the_end(values: FloatArray, drops: FloatArray, ar: float) -> Part:
    size = values.size
    start = np.arange(SHORTEST_FLANK, size - 1)
    width = size - start
    before, _ = _flanks(width, start, 0)
    total = np.concatenate([[0.0], np.cumsum(values)])
    depth = (total[start] - total[start - before]) / before - (total[-1] - total[start]) / width
    error = np.array(
        [_error(w, b, 0, ar) for w, b in zip(width.tolist(), before.tolist(), strict=True)]
    )
    return start, np.full(start.size, size), depth, depth / error, _fall(drops, start, width)


def _flanks(
    width: IntArray | int, start: IntArray, left: IntArray | int
) -> tuple[IntArray, IntArray]:
    long = np.clip(width, SHORTEST_FLANK + 1, LONGEST_FLANK)
    return np.minimum(long, start), np.minimum(long, left)


def _fall(drops: FloatArray, start: IntArray, width: IntArray | int) -> FloatArray:
    """Return the largest drop between two values before each window's start and its middle."""
    first = np.maximum(start - 2, 0)
    stop = np.minimum(first + 3 + np.maximum(2, np.asarray(width) // 2), drops.size)
    padded = np.append(drops, -np.inf)  # reduceat needs every `stop` to be an index
    largest: FloatArray = np.maximum.reduceat(padded, np.column_stack([first, stop]).ravel())[::2]
    return largest


def _drops(values: FloatArray, ar: float) -> FloatArray:
    """Return the drops [evals] in standard errors: from the values before k to those from k on."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    onward = -_slopes(values[::-1], ONWARD)[::-1][:-1]
    before = _slopes(values, SLOPE_OVER)[:-1]
    rising = np.clip(np.minimum(before, onward), 0.0, None)
    falling = np.clip(-before, 0.0, None)
    out = np.full(values.size, -np.inf)
    for reach in EDGES:
        k = np.arange(reach, values.size - reach + 1)
        drop = (2 * total[k] - total[k - reach] - total[k + reach]) / reach
        # A curve that rises on both sides of the edge hides a part of the drop: add what it would
        # have risen. Not over longer reaches, where a stall of a few values would look like a drop.
        hidden = reach * rising[k] if reach <= 2 else 0.0
        going_on = reach * falling[k]  # a slow sag that began before is not an edge
        out[k] = np.maximum(out[k], (drop + hidden - going_on) / _edge_error(reach, ar))
    return out


def _slopes(values: FloatArray, over: int) -> FloatArray:
    """Return the least-squares slope [evals + 1] of the `over` values before each index.

    It is 0 where there are fewer values: their slope would be mostly noise.
    """
    out = np.zeros(values.size + 1)
    if values.size >= over:
        t = np.arange(over) - (over - 1) / 2
        out[over:] = sliding_window_view(values, over) @ t / (t @ t)
    return out


@lru_cache
def _widths(size: int) -> list[int]:
    widths, width = [], 2.0
    while width <= max(2, size // 2):
        widths.append(int(width))
        width *= GROWTH
    return sorted(set(widths))


def _weights(size: int, start: int, stop: int, before: int, after: int) -> FloatArray:
    width = stop - start
    share = ((before + width) / 2) / ((before + after) / 2 + width) if after else 0.0
    out = np.zeros(size)
    out[start - before : start] = (1 - share) / before
    out[start:stop] = -1 / width
    if after:
        out[stop : stop + after] = share / after
    return out


@lru_cache(maxsize=100_000)
def _error(width: int, before: int, after: int, ar: float) -> float:
    size = before + width + after
    return ar1_error(_weights(size, before, before + width, before, after), ar)


@lru_cache
def _edge_error(reach: int, ar: float) -> float:
    return ar1_error(np.repeat([1 / reach, -1 / reach], reach), ar)


def ar1_error(weights: FloatArray, ar: float) -> float:
    """Return the standard deviation of a weighted sum of AR(1) noise of unit variance.

    The variance is sum_ij w_i w_j ar^|i-j| = sum_i w_i^2 + 2 sum_i w_i sum_{j<i} ar^(i-j) w_j; the
    inner sum is a recursive filter, so the cost is linear.
    """
    from scipy.signal import lfilter  # slow to import, and not needed before the first dip

    earlier = lfilter([0.0, ar], [1.0, -ar], weights)
    return float(np.sqrt(weights @ weights + 2 * weights @ earlier))
