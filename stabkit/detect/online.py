"""The detectors fed point by point: with the same options, the same events at the same steps.

An event is reported when its first point is seen, so its `height` is that of the onset, not of the
peak. Evaluations that come twice, as after training went back to an earlier step, count once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stabkit.detect.bursts import GAP
from stabkit.detect.dips import find_dips
from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.detect.spike_scorer import SpikeScorer
from stabkit.detect.stale_moments import MIN_HISTORY, THRESHOLD, stale_points, surprise


@dataclass(frozen=True)
class Onset:
    """The first point of an event; `height` is how far it stands out, as its detector measures."""

    step: int
    height: float


class Merging:
    """The rule by which `find_spikes` joins flagged points to events, one point at a time."""

    def __init__(self, merge: int) -> None:
        self._merge = merge
        self._index = self._step = -math.inf
        self._ended = False

    def begins(self, index: int, step: int, ends: bool = False) -> bool:
        """Return whether this flagged point begins an event.

        `index` counts all usable points; `ends` says that the event ends with this point.
        """
        apart = index - self._index > 1 and step - self._step > self._merge
        begins = apart or self._ended
        self._index, self._step, self._ended = index, step, ends
        return begins


class OnlineSpikes:
    """`find_spikes` for one series; `height` is the ratio to what was expected."""

    def __init__(
        self,
        *,
        window: int = 100,
        threshold: float = 6.0,
        min_history: int = 12,
        merge: int = 10,
        mad_floor: float = 0.01,
    ) -> None:
        self._scorer = SpikeScorer(window, threshold, min_history, mad_floor)
        self._merging = Merging(merge)
        self._count = 0

    def add(self, steps: IntArray, values: FloatArray) -> list[Onset]:
        """Add points and return the events that begin with them.

        Values that are not finite or not above 0 are left out.
        """
        usable = np.isfinite(values) & (values > 0)
        at, first = steps[usable].tolist(), self._count
        self._count += len(at)
        found = []
        for point in self._scorer.add(np.log(values[usable])):
            step = at[point.at - first]
            if self._merging.begins(point.at, step, point.ends):
                found.append(Onset(step, math.exp(point.rise)))
        return found


class OnlineStaleMoments:
    """`find_stale_moments` for one layer; a value above the ceiling counts as one at it."""

    def __init__(
        self,
        beta2: float,
        *,
        threshold: float = THRESHOLD,
        merge: int = 10,
        min_history: int = MIN_HISTORY,
        first_update: int = 0,
    ) -> None:
        self._beta2, self._threshold = beta2, threshold
        self._min_history, self._first_update = min_history, first_update
        self._merging = Merging(merge)
        self._count = 0

    def add(self, steps: IntArray, adam_rms: FloatArray) -> list[Onset]:
        """Add points and return the events that begin with them."""
        usable = np.isfinite(adam_rms)
        steps, updates = steps[usable], steps[usable] - self._first_update + 1
        heights = surprise(adam_rms[usable], self._beta2, updates)
        found = [
            Onset(int(steps[i]), float(heights[i]))
            for i in stale_points(heights, updates, self._threshold, self._min_history)
            if self._merging.begins(self._count + int(i), int(steps[i]))
        ]
        self._count += len(steps)
        return found


class OnlineBursts:
    """Join onsets of layers, in order of steps, into as many bursts as `find_bursts` has.

    A burst takes every onset that it may. `find_bursts` knows the pauses that follow, and may count
    the last of these to the next burst.
    """

    def __init__(self, gap: int = GAP) -> None:
        self._gap = gap
        self._inside: set[str] = set()
        self._latest = -math.inf

    def begins(self, step: int, layers: Sequence[str]) -> bool:
        """Return whether a burst begins with `layers`, all that have an onset at `step`."""
        begins = step - self._latest > self._gap or not self._inside.isdisjoint(layers)
        self._inside = (set() if begins else self._inside) | set(layers)
        self._latest = step
        return begins


class OnlineDips:
    """`find_dips` of one metric after every evaluation; each dip is new once.

    The bounds of a dip may still move by some evaluations while more come. A dip is the same as an
    earlier one if the two share a low evaluation.
    """

    def __init__(self, chance: float) -> None:
        self._chance = chance
        self._steps: list[int] = []
        self._correct: list[BoolArray] = []
        self._dips = find_dips([], [])
        self._told: set[int] = set()  # steps that were low in a dip reported before

    def add(self, step: int, correct: BoolArray) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Add an evaluation, `correct` [n]; return all dips so far, and the new ones among them."""
        return self.extend([step], [correct])

    def extend(
        self, steps: Sequence[int], correct: Sequence[BoolArray]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Add several evaluations and search once, after the last of them."""
        known = len(self._steps)
        for step, bits in zip(steps, correct, strict=True):
            if not self._steps or step > self._steps[-1]:
                self._steps.append(step)
                self._correct.append(bits)
        if len(self._steps) > known:
            self._dips = self._find()
        dips = self._dips
        new = [not self._is_told(dip.onset, dip.recovery) for dip in dips.itertuples()]
        return dips, dips[np.array(new, dtype=bool)]

    def _find(self) -> pd.DataFrame:
        sizes = [len(bits) for bits in self._correct]
        accuracy = [float(bits.mean()) for bits in self._correct]
        if len(set(sizes)) > 1:  # other samples now: no pairs, counts alone
            return find_dips(self._steps, accuracy, n=np.array(sizes), chance=self._chance)
        bits = np.stack(self._correct) if sizes else None
        return find_dips(self._steps, accuracy, correct=bits, chance=self._chance)

    def _is_told(self, onset: int, recovery: float) -> bool:
        end = math.inf if math.isnan(recovery) else recovery
        low = {step for step in self._steps if onset < step < end}
        told = not self._told.isdisjoint(low)
        self._told |= low
        return told
