"""Detectors that take one point after another, and find the same events as those of whole series.

An event is reported when its first point is seen, so its `height` is that of the onset, not of the
peak. No later point changes what was found. Whether a spike stands out from the noise of its run is
another question: see `online_tails`. Dips have detectors of their own: see `online_dips`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.detect import spikes
from stabkit.detect.bursts import GAP
from stabkit.detect.joint_spikes import (
    BEFORE,
    SHARED_BAR,
    TOGETHER,
    rises,
    shared,
    where_measured,
)
from stabkit.detect.robust import FloatArray, IntArray, ratio_of
from stabkit.detect.spike_scorer import SpikeScorer
from stabkit.detect.spikes import BAR, FLOOR, MERGE, WINDOW
from stabkit.detect.stale_moments import MIN_HISTORY, THRESHOLD, stale_points, surprise

KEEPS = 10  # steps for which a layer without a value keeps the one before, among those it shares


@dataclass(frozen=True)
class Onset:
    """The first point of an event; `height` is how far it stands out, as its detector measures."""

    step: int
    height: float


class Merging:
    """The rule by which `find_spikes` joins flagged points to events, one point at a time."""

    def __init__(self) -> None:
        self._index = self._step = -math.inf
        self._ended = False

    @property
    def latest(self) -> float:
        """The step of the latest flagged point; -inf before the first."""
        return self._step

    def begins(self, index: int, step: int, ends: bool = False) -> bool:
        """Return whether this flagged point begins an event.

        `index` counts all usable points; `ends` says that the event ends with this point.
        """
        apart = index - self._index > 1 and step - self._step > MERGE
        begins = apart or self._ended
        self._index, self._step, self._ended = index, step, ends
        return begins


class OnlineSpikes:
    """`find_spikes` for one series; `height` is the ratio to what was expected."""

    def __init__(self) -> None:
        self._scorer = SpikeScorer(WINDOW, BAR, spikes.MIN_HISTORY, FLOOR)
        self._merging = Merging()
        self._count = 0
        self.flagged: list[int] = []  # steps of all points of events, among those added last

    @property
    def latest(self) -> float:
        """The last step of the latest event so far; -inf before the first."""
        return self._merging.latest

    def add(self, steps: IntArray, values: FloatArray) -> list[Onset]:
        """Add points and return the events that begin with them.

        Values that are not finite or not above 0 are left out.
        """
        usable = np.isfinite(values) & (values > 0)
        at, first = steps[usable].tolist(), self._count
        self._count += len(at)
        found = []
        self.flagged = []
        for point in self._scorer.add(np.log(values[usable])):
            step = at[point.at - first]
            self.flagged.append(step)
            if self._merging.begins(point.at, step, point.ends):
                found.append(Onset(step, ratio_of(point.rise)))
        return found


class OnlineSharedSpikes:
    """The spikes that layers share, as `find_layer_spikes` finds them.

    They are reported when three quarters of the layers have passed the bar, so up to five steps
    after their onset, and only for the layers that have passed it by then. The onset of a layer is
    the first value of those five that reaches half of the rise. A layer that lacks a value keeps
    the one before, for up to `KEEPS` steps; then it does not count until it has a history again.
    """

    def __init__(self) -> None:
        self._begin(())
        self.flagged: list[int] = []  # steps of the stretches with a spike, among those seen last

    def _begin(self, layers: tuple[str, ...]) -> None:
        self._layers = layers
        self._steps = np.zeros(0, dtype=np.int64)
        self._logs = np.zeros((0, len(layers)))  # [steps, layers], NaN where not measured
        self._goes_on = False  # whether the last stretch that was seen is of a spike

    def add(
        self, layers: Sequence[str], steps: IntArray, values: FloatArray
    ) -> list[tuple[Onset, str]]:
        """Add values [steps, layers] and return the layers whose shared spike begins with them.

        Values that are not finite or not above 0 count as not measured, and steps without any are
        left out. Other layers than before begin a new history.
        """
        usable = np.isfinite(values) & (values > 0)
        some = usable.any(axis=1)
        self.flagged = []
        if not some.any():
            return []
        if tuple(layers) != self._layers:
            self._begin(tuple(layers))
        logs = np.log(np.where(usable, values, np.nan))[some]
        self._steps = np.append(self._steps, steps[some])
        self._logs = np.concatenate([self._logs, logs])
        history = BEFORE + TOGETHER - 1
        found = self._begun(min(len(self._steps), history + len(logs)))
        self._steps, self._logs = self._steps[-history:], self._logs[-history - KEEPS :]
        return found

    def _begun(self, size: int) -> list[tuple[Onset, str]]:
        """Return the spikes that begin in the last `size` steps."""
        if size < BEFORE + TOGETHER:
            return []
        steps, known = self._steps[-size:], ~np.isnan(self._logs[-size:].T)
        logs = pd.DataFrame(self._logs).ffill(limit=KEEPS).to_numpy()[-size:].T
        heights, level, _ = rises(logs)
        heights = where_measured(heights, known)
        heights[np.isnan(sliding_window_view(logs, BEFORE + TOGETHER, axis=1)).any(axis=2)] = np.nan
        together = shared(heights)
        begins = together & ~np.concatenate([[self._goes_on], together[:-1]])
        self._goes_on = bool(together[-1])
        for k in np.flatnonzero(together):
            self.flagged += steps[k + BEFORE : k + BEFORE + TOGETHER].tolist()
        found = []
        for k in np.flatnonzero(begins):
            stretch = slice(k + BEFORE, k + BEFORE + TOGETHER)
            for i in np.flatnonzero(heights[:, k] >= SHARED_BAR):
                rise = logs[i, stretch] - level[i, k]
                onset = int(steps[stretch][np.argmax(rise >= rise.max() / 2)])
                found.append((Onset(onset, ratio_of(float(rise.max()))), self._layers[i]))
        return found


class OnlineStaleMoments:
    """`find_stale_moments` for one layer; a value above the ceiling counts as one at it."""

    def __init__(self, beta2: float, *, first_update: int = 0) -> None:
        self._beta2, self._first_update = beta2, first_update
        self._merging = Merging()
        self._count = 0

    def add(self, steps: IntArray, adam_rms: FloatArray) -> list[Onset]:
        """Add points and return the events that begin with them."""
        usable = np.isfinite(adam_rms)
        steps, updates = steps[usable], steps[usable] - self._first_update + 1
        heights = surprise(adam_rms[usable], self._beta2, updates)
        found = [
            Onset(int(steps[i]), float(heights[i]))
            for i in stale_points(heights, updates, THRESHOLD, MIN_HISTORY)
            if self._merging.begins(self._count + int(i), int(steps[i]))
        ]
        self._count += len(steps)
        return found


class OnlineBursts:
    """Join onsets of layers, in order of steps, into as many bursts as `find_bursts` has.

    A burst takes every onset that its rules allow. `find_bursts` knows the pauses that follow, so
    it may count the last of these onsets to the next burst.
    """

    def __init__(self) -> None:
        self._inside: set[str] = set()
        self._latest = -math.inf

    def begins(self, step: int, layers: Sequence[str]) -> bool:
        """Return whether a burst begins with `layers`, all that have an onset at `step`."""
        begins = step - self._latest > GAP or not self._inside.isdisjoint(layers)
        self._inside = (set() if begins else self._inside) | set(layers)
        self._latest = step
        return begins
