"""`find_dips` while a run trains: a dip is suspected, then confirmed or withdrawn.

The evaluations so far are searched again and again. This is repeated testing: sooner or later, one
search of a healthy run takes noise for a dip. So a dip is only suspected when a search finds it. It
is confirmed when a search finds it again `CONFIRMED_AFTER` evaluations later, standing out
`CLEARLY`. From then on it is never retracted. It is withdrawn when no search over `PATIENCE`
evaluations finds it. A dip that stays just above the bar is decided at the end, by a search of the
whole run, because noise can look like such a dip for long. A dip that a warm restart of the
learning rate explains, or may yet explain, is not confirmed. Measured rates and delays:
docs/error-rates.md.

A search costs the same in a run of any length: it sees the last `TAIL` evaluations. It runs when
two evaluations in a row are low and `AFTER_LOW` evaluations later, at each of the `WATCHED`
evaluations after a dip is suspected, and at least every `LOOK_EVERY` evaluations.
"""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from stabkit.detect.dip_search import dip_bar, strength
from stabkit.detect.dip_windows import width_count
from stabkit.detect.dips import ALPHA, MIN_DEPTH, find_dips
from stabkit.detect.lr_restarts import explained_dips, still_at_restart
from stabkit.detect.robust import BoolArray, FloatArray, difference_scale

State = Literal["suspected", "confirmed", "withdrawn"]

# Evaluations. By then most false dips of healthy runs are no longer found; the others
# barely pass the bar.
CONFIRMED_AFTER = 8
WATCHED = 24  # evaluations after the suspicion, at each of which it is searched for again
CLEARLY = 1.25  # times the bar
PATIENCE = 4  # evaluations; the noise of a short series varies, and with it what a search finds
TAIL = 256  # evaluations that one search sees
LOOK_EVERY = 32  # evaluations between searches of a curve in which nothing is low
AFTER_LOW = (0, 4, 8, 12)  # evaluations since two low ones; what follows a dip shows how low it is
LEVELS = (3, 12)  # evaluations before the last two that give the level of a rising, a noisy curve
NOISE_FROM = 40  # evaluations
LOW = 2.0  # scales of differences; in AR(1) noise with coefficient .5 these are 1.4 deviations


@dataclass(frozen=True)
class DipNews:
    """A dip whose state changed with the evaluation at step `at`.

    `dip`: its row of `find_dips` at that time, and whether it is `clear`. The bounds of a dip may
    still move by some evaluations while more come.
    """

    state: State
    at: int
    dip: dict[str, Any]


@dataclass(eq=False)
class _Told:
    """A dip that was reported, as suspected or confirmed."""

    dip: dict[str, Any]
    since: int  # evaluations when it was suspected
    latest: int  # evaluations when a search found it last
    low: tuple[float, float]  # its low evaluations lie between these steps
    confirmed: bool = False
    by_restart: bool = False  # whether a restart of the rate explains it, or may yet

    def is_certain(self, now: int) -> bool:
        """Return whether `now` evaluations are enough to confirm it."""
        return bool(self.dip["clear"]) and now - self.since >= CONFIRMED_AFTER


class OnlineDips:
    """The dips of one metric, evaluation by evaluation. Evaluations that come twice count once.

    Memory: one bit for each sample of each evaluation.
    """

    def __init__(self, chance: float, confirmed: Sequence[tuple[int, int]] = ()) -> None:
        """Begin; `confirmed`: onset and trough of each dip known already, as after a resume."""
        self._chance = chance
        self.restarts: Sequence[int] = ()  # steps at which the learning rate restarted
        self._steps: list[int] = []
        self._accuracy: list[float] = []
        self._packed: list[tuple[int, bytes]] = []  # samples, their bits
        self._told = [
            _Told({"onset": onset}, 0, 0, (onset, trough + 1), confirmed=True)
            for onset, trough in confirmed
        ]
        self._looked_at = 0  # evaluations at the latest search
        self._low_at = -max(AFTER_LOW) - 1  # evaluations when two were low

    @property
    def confirmed(self) -> int:
        """How many dips were confirmed so far. It never falls."""
        return sum(told.confirmed for told in self._told)

    def add(self, step: int, correct: BoolArray) -> list[DipNews]:
        """Add an evaluation, `correct` [n]; return the dips whose state it changed."""
        if self._steps and step <= self._steps[-1]:
            return []
        self._steps.append(step)
        self._accuracy.append(float(correct.mean()))
        self._packed.append((len(correct), np.packbits(correct).tobytes()))
        return self._compared(self._search(TAIL)) if self._must_look() else []

    def finish(self) -> list[DipNews]:
        """Search the whole run once, as nothing more comes: every dip is confirmed or withdrawn."""
        if not self._steps:
            return []
        return self._compared(self._search(len(self._steps)), over=True)

    def _must_look(self) -> bool:
        now = len(self._steps)
        if last_two_are_low(np.array(self._accuracy[-NOISE_FROM - 2 :])):
            self._low_at = now
        return (
            now - self._low_at in AFTER_LOW
            or now - self._looked_at >= LOOK_EVERY
            or any(not told.confirmed and now - told.since <= WATCHED for told in self._told)
        )

    def _search(self, last: int) -> pd.DataFrame:
        """Return the dips among the last evaluations that hold in the whole run so far."""
        self._looked_at = count = len(self._steps)
        steps, accuracy = self._steps[-last:], self._accuracy[-last:]
        packed = self._packed[-last:]
        sizes = [size for size, _ in packed]
        paired = len(set(sizes)) == 1
        if paired:
            rows = np.frombuffer(b"".join(bits for _, bits in packed), dtype=np.uint8)
            correct = np.unpackbits(rows.reshape(len(packed), -1), axis=1, count=sizes[0])
            dips = find_dips(steps, accuracy, correct=correct.view(bool), chance=self._chance)
        else:  # other samples now: no pairs, counts alone
            dips = find_dips(steps, accuracy, n=np.array(sizes), chance=self._chance)
        if dips.empty:  # the common case
            return dips
        # The search saw the windows of the tail; bar and correction are for those of the run.
        more = count * width_count(count) / (len(steps) * width_count(len(steps)))
        ar = dips.attrs["ar"]
        bar = dip_bar(count, ar, paired)
        strong = np.array([strength(dip.z, dip.fall, ar, bar) for dip in dips.itertuples()])
        strong[np.isnan(strong)] = 1.0  # a fall for good in a short run has no z: it is not clear
        dips = dips.assign(clear=strong >= CLEARLY)
        return dips[(strong >= 1) & ~(dips["p_value"] * more > ALPHA)]

    def _compared(self, dips: pd.DataFrame, over: bool = False) -> list[DipNews]:
        """Return how a search changes the reported dips; `over`: no evaluation comes after it."""
        now, at = len(self._steps), self._steps[-1]
        news, found = [], []
        spared = self._by_restarts(dips, over)
        for dip, by_restart in zip(dips.to_dict("records"), spared, strict=True):
            low = (dip["onset"], at + 1 if math.isnan(dip["recovery"]) else dip["recovery"])
            same = [told for told in self._told if self._share(told.low, low)]
            if not same:
                same = [_Told(dip, now, now, low)]
                self._told += same
                news.append(DipNews("suspected", at, dip))
            for told in same:
                told.dip, told.low = dip, (min(told.low[0], low[0]), low[1])
                told.latest, told.by_restart = now, by_restart
                found.append(told)
        for told in [told for told in self._told if not told.confirmed]:
            if told in found and not told.by_restart and (over or told.is_certain(now)):
                told.confirmed = True
                news.append(DipNews("confirmed", at, told.dip))
            elif over or now - told.latest >= PATIENCE:
                self._told.remove(told)
                news.append(DipNews("withdrawn", at, told.dip))
        return news

    def _by_restarts(self, dips: pd.DataFrame, over: bool) -> list[bool]:
        """Tell for each dip whether a restart explains it, or may yet explain it."""
        begin = [step for step in self.restarts if step <= self._steps[-1]]
        if not begin or dips.empty:
            return [False] * len(dips)
        steps = np.array(self._steps)
        found = explained_dips(dips, steps, np.array(self._accuracy), begin)
        if not over:
            found |= still_at_restart(dips, steps, begin)
        spared: list[bool] = found.tolist()
        return spared

    def _share(self, one: tuple[float, float], other: tuple[float, float]) -> bool:
        """Return whether two dips are one: an evaluation is low in both."""
        first = bisect(self._steps, max(one[0], other[0]))
        return first < len(self._steps) and self._steps[first] < min(one[1], other[1])


def last_two_are_low(accuracy: FloatArray) -> bool:
    """Return whether the last two evaluations are low enough to be worth a search.

    They must lie below the level before them, by half of what counts as a dip and by more than the
    noise, as in `find_dips`. The level is the higher of two medians: that of a few evaluations is
    near to a curve that rises.
    """
    before = accuracy[:-2]
    if before.size < LEVELS[0]:
        return False
    level = max(float(np.median(before[-m:])) for m in LEVELS)
    margin = max(MIN_DEPTH / 2, LOW * difference_scale(before))
    return float(accuracy[-2:].max()) < level - margin
