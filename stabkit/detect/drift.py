"""Drift: an accuracy that sags slowly, with no dip to show for it."""

import math

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from stabkit.detect.contrasts import ar1_error
from stabkit.detect.dips import find_dips
from stabkit.detect.robust import FloatArray
from stabkit.detect.significance import holm, p_value

SHORTEST_BLOCK = 5  # evaluations behind a level; a tenth of the run where that is more

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
    """Stretches between dips in which the level falls for longer than a dip's fall lasts.

    Arguments as in `find_dips`. A level is the mean of a tenth of the run's evaluations, at least
    five in a row; a drift is a fall between two levels that follow one another without a dip in
    between, beyond the noise and, with `correct` or `n`, significant (Holm-corrected over all
    pairs of levels that do not overlap). At most one, the largest, is reported a stretch. The
    failure that LAMB shows in MoCo v3 (Chen et al. 2021, section 4.1) is of this kind; one that
    never falls, but rises too little, only a comparison of runs can show.

    `dips`: what `find_dips` returned for the same arguments; without it, it is called.

    Columns: onset (the step at the middle of the higher level), trough (of the lower), recovery
    (the first level after it that has half of the depth back, NaN when there is none), depth
    (fraction), z, p_value. Raises as `find_dips`.
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
    noise, ar = max(dips.attrs["noise"], min_depth / 5), round(dips.attrs["ar"], 1)
    error = noise * math.sqrt(2) * ar1_error(np.full(block, 1 / block), ar)
    bar = threshold if threshold is not None else critical(ar, bits is not None)
    found, p_values = [], []
    for begin, end in _stretches(steps, dips):
        fall = _largest_fall(acc[begin:end], block)
        if fall is None or acc.size < 3 * block:
            continue
        high, low, depth = fall
        if depth < min_depth or depth / error < bar:
            continue
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
                "z": depth / error,
            }
        )
    pairs = max(1, (acc.size // block) * (acc.size // block - 1) // 2)
    corrected = holm(p_values, max(pairs, len(p_values)))
    rows = [row | {"p_value": p} for row, p in zip(found, corrected, strict=True) if not p > alpha]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def critical(ar: float, paired: bool) -> float:
    """The z of the largest fall that a healthy run passes in at most about 0.3 % of runs."""
    return 4.6 + (2.5 if paired else 3.0) * ar


def _stretches(steps: np.ndarray, dips: pd.DataFrame) -> list[tuple[int, int]]:
    """First and behind-the-last index of the evaluations between dips."""
    stretches, begin = [], 0
    for dip in dips.itertuples():
        stretches.append((begin, int(np.searchsorted(steps, dip.onset)) + 1))
        begin = int(np.searchsorted(steps, dip.recovery))  # NaN sorts last: nothing is left
    return [*stretches, (begin, steps.size)]


def _largest_fall(acc: FloatArray, block: int) -> tuple[int, int, float] | None:
    """First indices of the higher and the lower level, and how far apart they are."""
    if acc.size < 2 * block:
        return None
    levels = sliding_window_view(acc, block).mean(axis=1)
    highest = np.maximum.accumulate(levels)[:-block]
    falls = highest - levels[block:]
    low = int(np.argmax(falls)) + block
    high = int(np.argmax(levels[: low - block + 1]))
    return high, low, float(falls[low - block])
