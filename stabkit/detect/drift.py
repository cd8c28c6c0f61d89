"""Drift: an accuracy that sags slowly, with no dip to show for it."""

import math

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from stabkit.detect.contrasts import ar1_error
from stabkit.detect.dips import find_dips
from stabkit.detect.frames import rows_frame
from stabkit.detect.local_noise import flip_variances, noise_outside
from stabkit.detect.robust import BoolArray, FloatArray
from stabkit.detect.significance import holm, p_value

SHORTEST_BLOCK = 5  # evaluations whose mean is a level; a tenth of the run where that is more
# The noise of a level depends on how slow noise is. The AR(1) coefficient, which one run tells to
# .15, says it worse than one coefficient for all runs; the scatter of short means says it
# best. So the error of a level is that for a usual coefficient, corrected by that scatter.
USUAL_AR = 0.6
USUAL_COUNTS = 10  # short means that the usual coefficient counts for
SHORT_MEAN = 6  # evaluations: fewer show less of slow noise, of more there are fewer
STARTS = 200  # places where a level may begin: in a longer run, not every evaluation

_COLUMNS = {
    "onset": "int64",
    "trough": "int64",
    "recovery": "float64",
    "depth": "float64",
    "z": "float64",
    "p_value": "float64",
}


def find_drift(
    step: ArrayLike,
    accuracy: ArrayLike,
    n: ArrayLike | None = None,
    correct: ArrayLike | None = None,
    *,
    min_depth: float = 0.01,
    threshold: float | None = None,
    alpha: float = 0.01,
    dips: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Find stretches between dips in which the level falls slowly, without an edge.

    The arguments are those of `find_dips`. A level is the mean of a tenth of the evaluations in a
    row, at least five. A drift is a fall from one level to a later one with no dip between them,
    larger than the noise and, with `correct` or `n`, significant (Holm-corrected over all pairs of
    levels that do not overlap). It may come back or not. Only the clearest of each stretch between
    dips is reported. The failure of LAMB in MoCo v3 (Chen et al. 2021, section 4.1) is of this
    kind. A run that never falls but rises too little shows only in a comparison of runs.

    The noise of an evaluation is that of `find_dips`; how much of it is left in a level is told by
    the scatter of short means (`excess_scatter`). Where several seeds fall alike, the mean of their
    accuracies shows falls that no single one does.

    `threshold`: standard errors, by default `drift_bar`. `dips`: what `find_dips` returned for the
    same arguments; it is called if they are left out.

    Columns: onset (step at the middle of the higher level), trough (step at the middle of the
    lower), recovery (step of the first later level with half of the depth back, NaN if there is
    none), depth (fraction), z, p_value. Raises what `find_dips` raises.
    """
    if dips is None:
        dips = find_dips(
            step, accuracy, n, correct, min_depth=min_depth, threshold=threshold, alpha=alpha
        )
    seen = ~np.isnan(np.asarray(accuracy, dtype=np.float64))
    steps = np.asarray(step)[seen].astype(np.int64)
    acc = np.asarray(accuracy, dtype=np.float64)[seen]
    bits = None if correct is None else np.asarray(correct)[seen]
    counts = None if n is None else np.broadcast_to(np.asarray(n), seen.shape)[seen]
    block = max(SHORTEST_BLOCK, acc.size // 10)
    outside = np.ones(acc.size, dtype=bool)
    for begin, end in zip(dips["onset"], dips["recovery"].fillna(math.inf), strict=True):
        outside &= (steps <= begin) | (steps >= end)
    variances = None if bits is None else flip_variances(bits)
    noise, _ = noise_outside(acc, variances, outside)
    noise = np.maximum(noise, min_depth / 5)  # the same floor as in the search for dips
    # A drift is a difference of two block means, each with its own error. The blocks are far apart,
    # so their errors are taken as independent.
    block_error = ar1_error(np.full(block, 1 / block), USUAL_AR) * excess_scatter(
        acc, noise, outside
    )
    bar = threshold if threshold is not None else drift_bar(bits is not None)
    found, p_values = [], []
    for begin, end in _stretches(steps, dips):
        fall = clearest_fall(acc[begin:end], block_error * noise[begin:end], block, min_depth)
        if fall is None or fall[-1] < bar or acc.size < 3 * block:
            continue
        high, low, depth, z = fall
        weights = np.zeros(acc.size)
        weights[begin + high : begin + high + block] = 1 / block
        weights[begin + low : begin + low + block] = -1 / block
        levels = sliding_window_view(acc[begin:end], block).mean(axis=1)
        back = np.flatnonzero(levels[low:] >= levels[low] + depth / 2)
        middle = begin + block // 2
        p_values.append(p_value(weights, acc, counts, bits))
        found.append(
            {
                "onset": steps[middle + high],
                "trough": steps[middle + low],
                "recovery": steps[middle + low + back[0]] if back.size else math.nan,
                "depth": depth,
                "z": z,
            }
        )
    # Levels slide by one evaluation, but those that overlap are nearly one test.
    pairs = max(1, (acc.size // block) * (acc.size // block - 1) // 2)
    corrected = holm(p_values, max(pairs, len(p_values)))
    rows = [row | {"p_value": p} for row, p in zip(found, corrected, strict=True) if not p > alpha]
    return rows_frame([tuple(row[name] for name in _COLUMNS) for row in rows], _COLUMNS)


def drift_bar(paired: bool) -> float:
    """Return the z that the largest fall of a healthy run passes in less than 0.1 % of runs.

    Set on simulated runs, like `dip_bar`. Without the samples there is no paired test, which sees
    that answers change slowly, and the bar is higher.
    """
    return 3.9 if paired else 4.5


def excess_scatter(acc: FloatArray, noise: FloatArray, outside: BoolArray) -> float:
    """Return how many times as far short means scatter as those of AR(1) noise of USUAL_AR.

    Of three means of SHORT_MEAN evaluations in a row, the middle one lies on the line between the
    others but for noise. The square of its distance, over what AR(1) noise of that coefficient with
    the local `noise` [evals] would make it, is averaged over all places `outside` [evals] of dips,
    together with USUAL_COUNTS squares of 1. Of noise much slower than these means only its size
    shows: neighboring means move together.
    """
    width = SHORT_MEAN
    if acc.size < 3 * width:
        return 1.0
    whole = sliding_window_view(outside, 3 * width).all(axis=1)
    if not whole.any():
        return 1.0
    bend = np.repeat([-0.5, 1.0, -0.5], width) / width
    distance = sliding_window_view(acc, 3 * width) @ bend
    # Each mean brings its own variance, and the middle one counts four times as much.
    variance = sliding_window_view(noise**2, 3 * width) @ (bend**2 / np.sum(bend**2))
    seen = float(np.mean((distance**2 / variance)[whole])) / ar1_error(bend, USUAL_AR) ** 2
    count = np.count_nonzero(outside) / width - 2
    return math.sqrt((count * seen + USUAL_COUNTS) / (count + USUAL_COUNTS))


def _stretches(steps: np.ndarray, dips: pd.DataFrame) -> list[tuple[int, int]]:
    """Return the first index, and the one behind the last, of each stretch between dips."""
    stretches, begin = [], 0
    for dip in dips.itertuples():
        stretches.append((begin, int(np.searchsorted(steps, dip.onset)) + 1))
        begin = int(np.searchsorted(steps, dip.recovery))  # NaN sorts last: no stretch follows
    return [*stretches, (begin, steps.size)]


def clearest_fall(
    acc: FloatArray, errors: FloatArray, block: int, min_depth: float
) -> tuple[int, int, float, float] | None:
    """Return the fall from one level to a later one that is largest in standard errors.

    errors [evals]: the error of a level whose evaluations all have the noise of this one. Returns
    the first indices of the higher and the lower level, their difference, and its z; None if no
    level lies `min_depth` below an earlier one.
    """
    if acc.size < 2 * block:
        return None
    at = np.arange(0, acc.size - block + 1, max(1, acc.size // STARTS))
    levels = sliding_window_view(acc, block).mean(axis=1)[at]
    squares = sliding_window_view(errors**2, block).mean(axis=1)[at]
    depth = levels[:, None] - levels  # [earlier, later]
    z = depth / np.sqrt(squares[:, None] + squares)
    z[(at[:, None] + block > at) | (depth < min_depth)] = -math.inf
    high, low = np.unravel_index(int(np.argmax(z)), z.shape)
    if z[high, low] == -math.inf:
        return None
    return int(at[high]), int(at[low]), float(depth[high, low]), float(z[high, low])
