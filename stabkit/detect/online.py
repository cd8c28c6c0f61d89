"""The detectors of whole series, fed as the series comes: the same events at the same steps.

An event is told when its first point is seen, so that what is said of it (`height`) is of its
onset and not of its peak. What comes twice, as after a training went back, is taken once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stabkit.detect.bursts import GAP
from stabkit.detect.dips import find_dips
from stabkit.detect.robust import BoolArray, FloatArray, IntArray
from stabkit.detect.spikes import SpikeScorer
from stabkit.detect.stale_moments import MIN_HISTORY, THRESHOLD, stale_points, surprise


@dataclass(frozen=True)
class Onset:
    """The first point of an event; `height` is the detector's own measure of it."""

    step: int
    height: float


class Merging:
    """Which flagged points begin an event: the rule of `find_spikes`, one point at a time."""

    def __init__(self, merge: int) -> None:
        self._merge = merge
        self._index = self._step = -math.inf
        self._ended = False

    def begins(self, index: int, step: int, ends: bool = False) -> bool:
        """`index`: of the point among all usable ones; `ends`: its event ends with it."""
        apart = index - self._index > 1 and step - self._step > self._merge
        begins = apart or self._ended
        self._index, self._step, self._ended = index, step, ends
        return begins


class OnlineSpikes:
    """`find_spikes` of one series; `height` is the ratio to the median before."""

    def __init__(
        self,
        *,
        window: int = 100,
        threshold: float = 6.0,
        min_history: int = 20,
        merge: int = 10,
        mad_floor: float = 0.01,
    ) -> None:
        self._scorer = SpikeScorer(window, threshold, min_history, window // 2, mad_floor)
        self._merging = Merging(merge)
        self._count = 0

    def add(self, steps: IntArray, values: FloatArray) -> list[Onset]:
        """Of values above 0; others are left out, as is what is not finite."""
        usable = np.isfinite(values) & (values > 0)
        found = []
        logs = np.log(values[usable]).tolist()
        for step, log in zip(steps[usable].tolist(), logs, strict=True):
            score = self._scorer.update(log)
            if score is not None and self._merging.begins(
                self._count, step, self._scorer.restarted
            ):
                found.append(Onset(step, math.exp(score[1])))
            self._count += 1
        return found


class OnlineStaleMoments:
    """`find_stale_moments` of one layer; a value above the ceiling counts as one at it."""

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
    """`find_bursts`: onsets of layers, in order of steps, that belong to one event."""

    def __init__(self, gap: int = GAP) -> None:
        self._gap = gap
        self._inside: set[str] = set()
        self._latest = -math.inf

    def begins(self, step: int, layers: Sequence[str]) -> bool:
        """Whether a burst begins with `layers`, all that have an onset at `step`."""
        begins = step - self._latest > self._gap or not self._inside.isdisjoint(layers)
        self._inside = (set() if begins else self._inside) | set(layers)
        self._latest = step
        return begins


class OnlineDips:
    """`find_dips` of one metric after every evaluation; a dip is new once.

    Its bounds may still move by some evaluations while more come: a dip is one that was told
    before when both were low at an evaluation.
    """

    def __init__(self, chance: float) -> None:
        self._chance = chance
        self._steps: list[int] = []
        self._correct: list[BoolArray] = []
        self._dips = find_dips([], [])
        self._told: set[int] = set()  # evaluations that are low in a dip that was new before

    def add(self, step: int, correct: BoolArray) -> tuple[pd.DataFrame, pd.DataFrame]:
        """All dips so far, and those of them that are new. `correct` [n]."""
        return self.extend([step], [correct])

    def extend(
        self, steps: Sequence[int], correct: Sequence[BoolArray]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Evaluations at once: dips of those in between are not looked for one by one."""
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
        if len(set(sizes)) > 1:  # not the same samples any more: each evaluation by itself
            return find_dips(self._steps, accuracy, n=np.array(sizes), chance=self._chance)
        bits = np.stack(self._correct) if sizes else None
        return find_dips(self._steps, accuracy, correct=bits, chance=self._chance)

    def _is_told(self, onset: int, recovery: float) -> bool:
        end = math.inf if math.isnan(recovery) else recovery
        low = {step for step in self._steps if onset < step < end}
        told = not self._told.isdisjoint(low)
        self._told |= low
        return told
