"""A loss that leaves its best level, while the run trains."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.detect.departure import LONG_LOST, LONG_RATIO
from stabkit.detect.robust import FloatArray, IntArray

WIDTH = 50  # values, whose median is the level
LASTS = 50  # levels in a row that stand high: those of about as many high values


@dataclass(frozen=True)
class Departure:
    """A loss that stands high. `step`: the first value of the level that did so first."""

    step: int
    best: float
    level: float


class OnlineDepartures:
    """Departures of one loss, as its values come.

    The rule is that of `find_long_rises`, of levels that end now: the median of the last `WIDTH`
    values doubles the lowest one so far, and loses a quarter of what the loss had gained since the
    first. It must do so `LASTS` values in a row. What it finds is a departure or a long rise
    afterwards: whether the loss comes back is not known. It is told again once the loss was back at
    its best level, to within a quarter of the ratio. A series with a value of 0 or below has none.
    """

    def __init__(self) -> None:
        self._last: FloatArray = np.zeros(0)
        self._steps: IntArray = np.zeros(0, dtype=np.int64)
        self._first = self._best = np.nan
        self._high = self._since = 0  # levels in a row that are high, and the step of the first
        self._told = self._refused = False

    def add(self, steps: IntArray, values: FloatArray) -> list[Departure]:
        """Add values in order of steps; return the departures that they make certain."""
        known = np.isfinite(values)
        self._refused |= bool((values[known] <= 0).any())
        if self._refused:
            return []
        every = np.concatenate([self._last, values[known]])
        at = np.concatenate([self._steps, steps[known]])
        self._last, self._steps = every[1 - WIDTH :], at[1 - WIDTH :]
        if every.size < WIDTH:
            return []
        levels = np.median(sliding_window_view(every, WIDTH), axis=1)
        found = []
        for begin, level in zip(at.tolist(), levels.tolist(), strict=False):
            if np.isnan(self._first):
                self._first = self._best = level
            self._best = min(self._best, level)
            lost = level - self._best >= LONG_LOST * (self._first - self._best)
            if not (lost and level >= LONG_RATIO * self._best):
                self._high = 0
                self._told &= level > self._best * LONG_RATIO**0.25
                continue
            self._since = begin if not self._high else self._since
            self._high += 1
            if self._high >= LASTS and not self._told:
                self._told = True
                found.append(Departure(self._since, self._best, level))
        return found
