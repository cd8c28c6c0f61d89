"""Confirms spikes that stand out from the noise of the run so far."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import zip_longest

from stabkit.detect.online_tails import OnlineTails
from stabkit.detect.robust import FloatArray, IntArray
from stabkit.monitor.react.events import OnlineEvent


class Confirming:
    """Confirms suspected spikes when they stand out, as long as they go on.

    A spike is over when the next one begins, or `gap` steps after its last high value.
    """

    def __init__(self, gap: int) -> None:
        self._gap = gap
        self._tails = OnlineTails()
        self._open: list[OnlineEvent] = []
        self._high: list[int] = []  # steps since the first open event that belong to a spike

    def add(
        self,
        begun: list[OnlineEvent],
        layers: Sequence[str],
        steps: IntArray,
        values: FloatArray,
        flagged: Collection[int],
    ) -> list[OnlineEvent]:
        """Return the spikes that begin, and those that are confirmed, by values [steps, layers]."""
        self._tails.add(layers, steps, values, flagged)
        self._open += begun
        if not (self._open and len(steps)):
            return begun
        self._high = sorted({*self._high, *flagged, *(event.step for event in begun)})
        confirmed, going_on = [], []
        for event, following in zip_longest(self._open, self._open[1:]):
            until = math.inf if following is None else following.step
            last = self._last(event.step, until)
            if self._tails.stands_out(event.step, last):
                confirmed.append(replace(event, state="confirmed"))
            elif following is None and int(steps[-1]) - last <= self._gap:
                going_on.append(event)
        self._open = going_on
        first = going_on[0].step if going_on else math.inf
        self._high = [step for step in self._high if step >= first]
        return begun + confirmed

    def _last(self, first: int, until: float) -> int:
        """Return the last high step of the spike that begins at `first`, before the next one."""
        last = first
        for step in self._high:
            if last < step < until and step - last <= self._gap:
                last = step
        return last
