"""Contrasts of a series: how far a window lies below the level around it, in standard errors.

A window [i, j) of w values is compared with two flanks, of m values before and after it:

    depth = reference - mean(window),   z = depth / standard error of the contrast under AR(1) noise

The reference is the lower of two lines. The first goes from the mean of one flank to the mean of
the other; no concave curve lies below it. The second continues the level before the window, along
the lesser of two slopes: the one before the window, and the one across it. No convex curve lies
below it. So a healthy curve, which bends one way at a time, lies below neither. A window that
reaches the end of the series has no flank after it, and its reference is the level before.
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
EDGES = (1, 2, 3, 5)  # evaluations averaged on either side of an edge; more where noise hides it
ONWARD = 5  # evaluations that give the slope after an edge
GROWTH = 1.25  # ratio of successive window widths: any dip fills most of some window


@dataclass(frozen=True)
class Windows:
    """Candidate windows as arrays [windows]: first index, index behind the last, depth, z, fall.

    `z` and `fall` are in standard errors.
    """

    start: IntArray
    stop: IntArray
    depth: FloatArray
    z: FloatArray
    fall: FloatArray


def scan(values: FloatArray, time: FloatArray, noise: FloatArray, ar: float) -> Windows:
    """Return every window of two values to half of the series, and every window to its end.

    Widths grow by GROWTH. time [evals]: steps, which need not be equally far apart. noise [evals]
    and `ar`: standard deviation and AR(1) coefficient of the noise. The standard error of a depth
    is that of the mean square of the noise in the window and its flanks. `fall` is the largest drop
    between neighboring means of 1, 2, 3 or 5 values at the start of the window, beyond a decline
    that went on before. It tells a dip from a stall of a rising curve, which lies below its trend
    although nothing falls there.
    """
    size = values.size
    start, stop = _candidates(size)
    before, after = _flanks(start, stop, size)
    sums, times = _sums(values), _sums(time)
    inside, level = _mean(sums, start, stop), _mean(sums, start - before, start)
    here = _mean(times, start - before, start)
    ahead = _mean(times, start, stop) - here
    # Windows to the end have no flank behind them: their reference is the level before.
    behind = stop + np.maximum(after, 1)
    later, there = (_mean(np.append(s, s[-1]), stop, behind) for s in (sums, times))
    # Where the middle of the window lies between those of its flanks: 0 at the first, 1 at the last
    share = np.where(after > 0, ahead / np.where(after > 0, there - here, 1.0), 0.0)
    across = (later - level) / np.where(after > 0, there - here, 1.0)
    slope = np.clip(np.minimum(across, _slopes(values, time, SLOPE_OVER)[start]), 0.0, None)
    slope[after == 0] = 0.0
    carried = level + slope * np.minimum(ahead, _carried(time, start))
    depth = np.minimum((1 - share) * level + share * later, carried) - inside
    error = _error(size, ar, stop - start, before, after, share)
    error *= _noise_in(noise, start - before, stop + after)
    fall = _fall(_drops(values, time, noise, ar), start, stop)
    return Windows(start, stop, depth, depth / error, fall)


def width_count(size: int) -> int:
    """Return how many windows begin at one evaluation, for the correction for many tests."""
    return len(_widths(size))


def weights_of(time: FloatArray, start: int, stop: int) -> FloatArray:
    """Return weights [evals] whose sum over values is the depth below the line between flanks."""
    before, after = _flanks_of(start, stop, time.size)
    out = np.zeros(time.size)
    out[start:stop] = -1 / (stop - start)
    out[start - before : start] = 1 / before
    if after:
        here, there = time[start - before : start].mean(), time[stop : stop + after].mean()
        share = (time[start:stop].mean() - here) / (there - here)
        out[start - before : start] *= 1 - share
        out[stop : stop + after] = share / after
    return out


def reference(values: FloatArray, time: FloatArray, start: int, stop: int) -> FloatArray:
    """Return the line [evals] that a window is measured against; flat if it reaches the end."""
    before, after = _flanks_of(start, stop, time.size)
    level = float(values[start - before : start].mean())
    if not after:
        return np.full(time.size, level)
    ahead = time - time[start - before : start].mean()
    across = (float(values[stop : stop + after].mean()) - level) / ahead[stop : stop + after].mean()
    first = max(start - SLOPE_OVER, 0)
    earlier = _slopes(values[first:start], time[first:start], SLOPE_OVER)[-1]
    slope = min(across, max(0.0, float(earlier)))
    if slope != across:
        ahead = np.minimum(ahead, _carried(time, np.array([start])))
    return np.asarray(level + slope * ahead, dtype=np.float64)


@lru_cache(maxsize=4)
def _candidates(size: int) -> tuple[IntArray, IntArray]:
    """Return the first index of every window, and the index behind its last."""
    starts = [np.arange(SHORTEST_FLANK, size - w - SHORTEST_FLANK + 1) for w in _widths(size)]
    stops = [start + width for start, width in zip(starts, _widths(size), strict=True)]
    last = np.arange(SHORTEST_FLANK, size - 1)
    return np.concatenate([*starts, last]), np.concatenate([*stops, np.full(last.size, size)])


def _flanks(start: IntArray, stop: IntArray, size: int) -> tuple[IntArray, IntArray]:
    """Return how many values each window's flanks have, before and after it."""
    long = np.clip(stop - start, SHORTEST_FLANK + 1, LONGEST_FLANK)
    return np.minimum(long, start), np.minimum(long, size - stop)


def _flanks_of(start: int, stop: int, size: int) -> tuple[int, int]:
    before, after = _flanks(np.array([start]), np.array([stop]), size)
    return int(before[0]), int(after[0])


def _sums(values: FloatArray) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(values)])


def _mean(sums: FloatArray, start: IntArray, stop: IntArray) -> FloatArray:
    mean: FloatArray = (sums[stop] - sums[start]) / (stop - start)
    return mean


def _noise_in(noise: FloatArray, start: IntArray, stop: IntArray) -> FloatArray:
    """Return the root mean square of the noise between indices."""
    squares = _mean(_sums(noise**2), start, stop)
    root: FloatArray = np.sqrt(np.maximum(squares, noise.min() ** 2))  # sums are rounded
    return root


def _carried(time: FloatArray, start: IntArray) -> FloatArray:
    """Return how far a slope before `start` is carried on, in units of `time`."""
    over = np.minimum(start, SLOPE_OVER) - 1
    far: FloatArray = CARRIED * (time[start - 1] - time[start - 1 - over]) / over
    return far


def _fall(drops: FloatArray, start: IntArray, stop: IntArray) -> FloatArray:
    """Return the largest drop from two values before each window's start to its middle."""
    first = np.maximum(start - 2, 0)
    last = np.minimum(first + 3 + np.maximum(2, (stop - start) // 2), drops.size)
    padded = np.append(drops, -np.inf)  # reduceat needs every `last` to be an index
    largest: FloatArray = np.maximum.reduceat(padded, np.column_stack([first, last]).ravel())[::2]
    return largest


def _drops(values: FloatArray, time: FloatArray, noise: FloatArray, ar: float) -> FloatArray:
    """Return the drops [evals] in standard errors: from the values before k to those from k on."""
    totals, times = _sums(values), _sums(time)
    onward = -_slopes(values[::-1], -time[::-1], ONWARD)[::-1][:-1]
    before = _slopes(values, time, SLOPE_OVER)[:-1]
    rising = np.clip(np.minimum(before, onward), 0.0, None)
    falling = np.clip(-before, 0.0, None)
    out = np.full(values.size, -np.inf)
    for reach in EDGES:
        k = np.arange(reach, values.size - reach + 1)
        drop = _mean(totals, k - reach, k) - _mean(totals, k, k + reach)
        apart = _mean(times, k, k + reach) - _mean(times, k - reach, k)
        # A curve that rises on both sides of the edge hides a part of the drop: add what it would
        # have risen. Not over longer reaches, where a stall of a few values would look like a drop.
        hidden = apart * rising[k] if reach <= 2 else 0.0
        going_on = apart * falling[k]  # a slow sag that began before is not an edge
        error = _edge_error(reach, ar) * _noise_in(noise, k - reach, k + reach)
        out[k] = np.maximum(out[k], (drop + hidden - going_on) / error)
    return out


def _slopes(values: FloatArray, time: FloatArray, over: int) -> FloatArray:
    """Return the least-squares slope [evals + 1] of the `over` values before each index.

    It is 0 where there are fewer values: their slope would be mostly noise.
    """
    out = np.zeros(values.size + 1)
    if values.size >= over:
        t = sliding_window_view(time, over)
        t = t - t.mean(axis=1, keepdims=True)
        out[over:] = np.sum(sliding_window_view(values, over) * t, axis=1) / np.sum(t**2, axis=1)
    return out


@lru_cache
def _widths(size: int) -> list[int]:
    widths, width = [], 2.0
    while width <= max(2, size // 2):
        widths.append(int(width))
        width *= GROWTH
    return sorted(set(widths))


def _error(
    size: int, ar: float, width: IntArray, before: IntArray, after: IntArray, share: FloatArray
) -> FloatArray:
    """Return the standard errors of windows' contrasts, in units of the noise.

    A contrast is a sum of three means of AR(1) noise, weighted by 1 - share, -1 and share. Two
    blocks of a and b values with g between them have means of covariance ar^(g+1) s_a s_b, where
    s_m = (1 - ar^m) / (1 - ar) / m; the mean of one block has a variance of
    ((1 + ar) / (1 - ar) - 2 ar s_m / (1 - ar)) / m.
    """
    m = np.arange(size + 1)
    powers = ar**m
    with np.errstate(divide="ignore", invalid="ignore"):  # m = 0, an absent flank: set to 0 below
        s = (1 - powers) / (1 - ar) / m
        own = ((1 + ar) - 2 * ar * s) / (1 - ar) / m
    s[0] = own[0] = 0.0
    touching = (1 - share) * s[before] + share * s[after]
    variance = own[width] + (1 - share) ** 2 * own[before] + share**2 * own[after]
    variance -= 2 * ar * touching * s[width]
    variance += 2 * (1 - share) * share * ar * powers[width] * s[before] * s[after]
    error: FloatArray = np.sqrt(variance)
    return error


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
