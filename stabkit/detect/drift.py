"""Drift: an accuracy that falls slowly, without a dip."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import math

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from stabkit.detect.dip_windows import ar1_error
from stabkit.detect.dips import ALPHA, MIN_DEPTH, find_dips
from stabkit.detect.frames import rows_frame
from stabkit.detect.local_noise import flip_variances, least_noise, noise_outside
from stabkit.detect.outliers import find_outliers
from stabkit.detect.robust import FloatArray
from stabkit.detect.significance import holm, p_value

SHORTEST_BLOCK = 5  # evaluations whose mean is a level; a tenth of the run where that is more

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
    min_depth: float = MIN_DEPTH,
    threshold: float | None = None,
    alpha: float = ALPHA,
    dips: pd.DataFrame | None = None,
    outliers: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Find stretches between dips in which the level falls slowly, without an edge.

    The arguments are those of `find_dips`. A level is the mean of a tenth of the evaluations in a
    row, at least five; outliers (`find_outliers`) are left out. A drift is a fall from one level to
    a later one with no dip between them, larger than the noise and, with `correct` or `n`,
    significant (Holm-corrected over all pairs of levels that do not overlap). Only the largest of
    each stretch between dips is reported. The failure of LAMB in MoCo v3 (Chen et al. 2021, section
    4.1) is of this kind. A run that never falls but rises too little shows only in a comparison of
    runs.

    `dips`, `outliers`: what `find_dips` and `find_outliers` returned for the same arguments; they
    are called if these are left out.

    Columns: onset (step at the middle of the higher level), trough (step at the middle of the
    lower), recovery (step of the first later level with half of the depth back, NaN if there is
    none), depth (fraction), z, p_value. Raises what `find_dips` raises.
    """
    if dips is None:
        dips = find_dips(
            step, accuracy, n, correct, min_depth=min_depth, threshold=threshold, alpha=alpha
        )
    if outliers is None:
        outliers = find_outliers(step, accuracy, n)
    seen = ~np.isnan(np.asarray(accuracy, dtype=np.float64)) & ~np.isin(step, outliers["onset"])
    steps = np.asarray(step)[seen].astype(np.int64)
    acc = np.asarray(accuracy, dtype=np.float64)[seen]
    bits = None if correct is None else np.asarray(correct)[seen]
    counts = None if n is None else np.broadcast_to(np.asarray(n), seen.shape)[seen]
    block = max(SHORTEST_BLOCK, acc.size // 10)
    outside = np.ones(acc.size, dtype=bool)
    for begin, end in zip(dips["onset"], dips["recovery"].fillna(math.inf), strict=True):
        outside &= (steps <= begin) | (steps >= end)
    variances = None if bits is None else flip_variances(bits)
    noise, ar = noise_outside(acc, variances, outside)
    noise = np.maximum(noise, least_noise(acc, variances, min_depth))
    # A drift is a difference of two block means, each with the error of a mean of AR(1) noise. The
    # blocks are far apart, so their errors are taken as independent.
    block_error = ar1_error(np.full(block, 1 / block), ar)
    bar = threshold if threshold is not None else drift_bar(ar, bits is not None)
    found, p_values = [], []
    for begin, end in _stretches(steps, dips):
        fall = _largest_fall(acc[begin:end], block)
        if fall is None or acc.size < 3 * block:
            continue
        high, low, depth = fall
        blocks = [slice(begin + at, begin + at + block) for at in (high, low)]
        error = block_error * math.sqrt(sum(float(np.mean(noise[b] ** 2)) for b in blocks))
        if depth < min_depth or depth / error < bar:
            continue
        weights = np.zeros(acc.size)
        weights[blocks[0]], weights[blocks[1]] = 1 / block, -1 / block
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
                "z": depth / error,
            }
        )
    # Levels slide by one evaluation, but those that overlap are nearly one test.
    pairs = max(1, (acc.size // block) * (acc.size // block - 1) // 2)
    corrected = holm(p_values, max(pairs, len(p_values)))
    rows = [row | {"p_value": p} for row, p in zip(found, corrected, strict=True) if not p > alpha]
    return rows_frame([tuple(row[name] for name in _COLUMNS) for row in rows], _COLUMNS)


def drift_bar(ar: float, paired: bool) -> float:
    """Return the z that the largest fall of a healthy run passes in about 0.3 % of runs.

    Set on simulated runs, like `dip_bar`; it rises with `ar`, whose estimate scatters by .15 and
    which means more to a mean of many evaluations than to an edge.
    """
    return (3.0 if paired else 4.0) + 2.5 * ar


def _stretches(steps: np.ndarray, dips: pd.DataFrame) -> list[tuple[int, int]]:
    """Return the first index, and the one behind the last, of each stretch between dips."""
    stretches, begin = [], 0
    for onset, recovery in zip(dips["onset"], dips["recovery"], strict=True):
        stretches.append((begin, int(np.searchsorted(steps, onset)) + 1))
        begin = int(np.searchsorted(steps, recovery))  # NaN sorts last: no stretch follows
    return [*stretches, (begin, steps.size)]


def _largest_fall(acc: FloatArray, block: int) -> tuple[int, int, float] | None:
    """Return the first indices of the higher and the lower level, and their difference."""
    if acc.size < 2 * block:
        return None
    levels = sliding_window_view(acc, block).mean(axis=1)
    # highest[i]: the highest level whose block ends before the block of level i + block begins
    highest = np.maximum.accumulate(levels)[:-block]
    falls = highest - levels[block:]
    low = int(np.argmax(falls)) + block
    high = int(np.argmax(levels[: low - block + 1]))
    return high, low, float(falls[low - block])
