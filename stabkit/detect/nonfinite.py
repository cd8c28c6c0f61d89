"""Stretches of steps in which values are not finite; numpy only."""

import numpy as np
from numpy.typing import ArrayLike

from stabkit.detect.robust import IntArray


def nonfinite_stretches(bad: ArrayLike, within: bool = False) -> tuple[IntArray, IntArray]:
    """Return the first and the last index of every stretch of true values in `bad`, [n] booleans.

    A stretch is one event, and it begins at its first index. `within`: the value before the first
    one was bad too. A stretch that goes on from there has -1 as its first index, because it began
    earlier; it is there even if the value at index 0 is good (then its last index is -1 as well).
    """
    flags = np.concatenate([[False, within], np.asarray(bad, dtype=bool), [False]])
    begins, ends = flags[1:-1] & ~flags[:-2], flags[1:-1] & ~flags[2:]
    return np.flatnonzero(begins) - 1, np.flatnonzero(ends) - 1
