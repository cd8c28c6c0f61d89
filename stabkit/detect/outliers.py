"""Outliers: single evaluations that fall far below both of their neighbors."""

from __future__ import annotations  # a signature names ArrayLike, not all it stands for

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stabkit.detect.frames import rows_frame
from stabkit.detect.robust import (
    MAD_TO_STD,
    PERCENT,
    check_accuracy,
    checked_series,
    samples_told,
)

BAR = 6.0  # robust deviations, whose estimate scatters by a fifth
SURE_BAR = 4.5  # binomial deviations of `n` samples, which need no estimate
AROUND = 10  # evaluations on each side that tell the noise
LEAST = 0.02  # of accuracy; smaller falls matter to nobody
FLOOR = 0.003  # of accuracy; the noise of a series that hardly moves
SHORTEST = 8
COLUMNS = {"onset": "int64", "depth": "float64", "height": "float64", "last": "bool"}


def find_outliers(step: ArrayLike, accuracy: ArrayLike, n: ArrayLike | None = None) -> pd.DataFrame:
    """Find evaluations that lie alone and far below the two beside them.

    The last evaluation has one neighbor only; it is compared with that. The noise is the median
    distance of up to AROUND evaluations on each side from the mean of *their* neighbors, and at
    least three quarters of the binomial noise of `n` samples (where given; 0 means unknown). Where
    it is not, accuracies that are shares of few samples tell n (`samples_told`).

    A single low evaluation is no dip: it does not show whether the network or its evaluation
    failed at that step. Returns one row each: onset (the step), depth (below the lower neighbor),
    height (depth over noise), last (whether it is the last evaluation). Raises ValueError for steps
    that do not increase, accuracies outside 0..1, and counts below 0 or of another number.
    """
    steps, values = checked_series(step, accuracy, "accuracy")
    check_accuracy(steps, values)
    given = np.asarray(0 if n is None else n, dtype=np.float64)
    if given.shape not in ((), values.shape) or np.any(given < 0):
        raise ValueError(f"n must be 0 or more, or [{values.size}] such numbers, got {n!r}")
    counts = np.broadcast_to(given, values.shape)
    finite = np.isfinite(values)
    steps, values, counts = steps[finite], values[finite], counts[finite]
    samples = samples_told(values)
    if samples != PERCENT:  # accuracies of any number of samples are printed so
        counts = np.where(counts > 0, counts, samples)
    rows = []
    if len(values) >= SHORTEST:
        below = (values[:-2] + values[2:]) / 2 - values[1:-1]  # at evaluations 1 .. -2
        lower = np.minimum(values[:-2], values[2:]) - values[1:-1]
        falls = [(i, float(lower[i - 1]), below, 1.5) for i in range(1, len(values) - 1)]
        # the last has one neighbor: a difference of two, whose noise is that of differences
        drops = values[:-1] - values[1:]
        falls.append((len(values) - 1, float(drops[-1]), drops, 2.0))
        for i, depth, all_depths, variances in falls:
            if depth < LEAST:
                continue
            sampling = _binomial(values[i] + depth, counts[i], variances)
            noise = max(_noise(all_depths, i - 1), sampling * SURE_BAR / BAR)
            if depth >= BAR * noise:
                rows.append((steps[i], depth, depth / noise, i == len(values) - 1))
    return rows_frame(rows, COLUMNS)


def _noise(depths: np.ndarray, at: int) -> float:
    """Return the robust deviation around `at`, without it and the two beside it, which it moves."""
    near = np.r_[depths[max(0, at - AROUND) : max(0, at - 1)], depths[at + 2 : at + AROUND + 1]]
    return max(FLOOR, MAD_TO_STD * float(np.median(np.abs(near)))) if len(near) else np.inf


def _binomial(accuracy: float, n: float, variances: float) -> float:
    """Return the deviation of a distance made of several proportions of n samples each.

    All samples right do not mean that none can be wrong: by Laplace's rule of succession it is one
    of n + 2.
    """
    least = 1 / (n + 2)
    share = min(max(accuracy, least), 1 - least)
    return float(np.sqrt(variances * share * (1 - share) / n)) if n > 0 else 0.0
