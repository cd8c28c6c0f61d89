"""Find warm restarts of the learning rate, and tell the events that they explain."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.detect.robust import FloatArray

JUMPS_BY, AS_BEFORE = 2.0, 1.05  # times the rate before a restart; times the highest before it
NEAR = 0.05  # of the way to the next restart
GROWS_BY = 4.0  # from one cycle to the next; more is no rule
DEEPER = 1.5  # times the deepest fall at a restart, of a dip that the run ends in
BELOW = 0.75  # of the depth of a dip, below the level early in the cycle before
EARLY = 2  # evaluations; an onset may be dated so many too early


class OnlineRestarts:
    """The restarts of a rate, value by value. Values that come twice count once.

    At a restart a rate that had decayed jumps up again: it doubles from one value to the next or
    rises by more, to no more than it was before. A jump to a rate that was never used is no restart
    (Loshchilov and Hutter 2017).
    """

    def __init__(self) -> None:
        self.steps: list[int] = []  # of the restarts
        self._at, self._before, self._highest = -1, math.inf, 0.0

    def add(self, step: int, rate: float) -> None:
        """Take in the rate of a step."""
        if step <= self._at:
            return
        if JUMPS_BY * self._before <= rate <= AS_BEFORE * self._highest:
            self.steps.append(step)
        self._at, self._before, self._highest = step, rate, max(self._highest, rate)


def restarts(rates: "pd.Series[float]") -> list[int]:
    """Return the steps of the restarts of a rate; its index has the steps."""
    found = OnlineRestarts()
    for step, rate in zip(rates.index.tolist(), rates.tolist(), strict=True):
        found.add(step, rate)
    return found.steps


def expected_cycle(begin: Sequence[int]) -> float:
    """Return how many steps the cycle under way may take; 0 if none came to its end.

    It is as long as the last whole cycle. If that one was longer than the one before, it grows by
    the same factor once more, as with `T_mult` of torch's CosineAnnealingWarmRestarts.
    """
    whole = np.diff(begin)
    if whole.size < 2:
        return float(whole[-1]) if whole.size else 0.0
    grown = whole[-1] / whole[-2]
    return float(whole[-1] * (grown if 1 < grown <= GROWS_BY else 1))


def explained_by_restarts(
    onsets: Iterable[int], ends: Iterable[float], shown: Iterable[int], begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each event whether it begins at a restart and ends before the next.

    `shown`: the first step that shows the event; its onset may lie before. An event that begins
    more than a twentieth of the way to the next restart behind one has another cause. The next one
    after the last is taken to come after an `expected_cycle`.
    """
    usual = expected_cycle(begin)
    found = []
    for onset, end, seen in zip(onsets, ends, shown, strict=True):
        last = max((step for step in begin if step <= seen), default=None)
        later = min((step for step in begin if step > seen), default=math.inf)
        if last is None:
            found.append(False)
            continue
        length = later - last if math.isfinite(later) else usual
        found.append(onset <= last + NEAR * length and end < later)
    return np.array(found, dtype=bool)


def explained_dips(
    dips: pd.DataFrame, steps: NDArray[np.int64], accuracy: FloatArray, begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each dip whether a restart explains it: it begins there, and ends before the next.

    `dips`: onset, recovery, depth. `steps`, `accuracy`: of the evaluations so far. A dip without a
    recovery is explained if it begins at the last restart, whose cycle is not complete, and is
    hardly deeper than the falls at the restarts before. None is explained that falls far below
    where the accuracy was early in the cycle before.
    """
    if dips.empty or not begin:
        return np.zeros(len(dips), dtype=bool)
    explained = explained_by_restarts(
        dips["onset"], dips["recovery"].fillna(math.inf), _shown(dips, steps), begin
    )
    explained &= ~_lost_for_good(dips, steps, accuracy, begin)
    explained &= ~_below_cycle_before(dips, steps, accuracy, begin)
    if steps[-1] < begin[-1] + expected_cycle(begin):
        hardly_deeper = dips["depth"].to_numpy() <= DEEPER * _deepest_fall(steps, accuracy, begin)
        explained |= _open_at_last(dips, steps, begin) & hardly_deeper
    return explained


def _lost_for_good(
    dips: pd.DataFrame, steps: NDArray[np.int64], accuracy: FloatArray, begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each dip whether half of its depth is still missing when the cycle is complete.

    The levels compared are means of three evaluations outside of dips: the last up to the onset,
    and the last before the next restart or the end of the run.
    """
    usual = expected_cycle(begin)
    complete = usual and steps[-1] >= begin[-1] + (1 - NEAR) * usual
    ends = [*begin, int(steps[-1]) + 1] if complete else begin
    outside = np.isfinite(accuracy)
    for dip in dips.itertuples():
        outside &= ~((steps > dip.onset) & ~(steps >= dip.recovery))  # to the end if it is NaN
    lost = []
    for dip in dips.itertuples():
        end = min((at for at in ends if at > dip.recovery), default=-math.inf)
        before = accuracy[outside & (steps <= dip.onset)][-3:]
        after = accuracy[outside & (steps >= dip.recovery) & (steps < end)][-3:]
        both = before.size and after.size
        lost.append(bool(both and before.mean() - after.mean() > dip.depth / 2))
    return np.array(lost, dtype=bool)


def _below_cycle_before(
    dips: pd.DataFrame, steps: NDArray[np.int64], accuracy: FloatArray, begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each dip whether it falls far below where it was early in the cycle before.

    The early level is the median of the first quarter of that cycle. The cycle that the run begins
    with tells none, as the curve rises there: at its end a dip is far that loses half of all.
    """
    seen = np.isfinite(accuracy)
    steps, accuracy = steps[seen], accuracy[seen]
    starts, far = [int(steps[0]), *begin], []
    for dip, shown in zip(dips.itertuples(), _shown(dips, steps), strict=True):
        before = [start for start in starts if start <= shown][-2:]
        inside = accuracy[(steps > dip.onset) & ~(steps >= dip.recovery)]
        low = float(inside.min()) if inside.size else math.inf
        if before[0] == steps[0]:
            far.append(low < dip.depth)
            continue
        first = accuracy[(steps >= before[0]) & (steps < before[0] + (before[1] - before[0]) / 4)]
        far.append(bool(first.size and np.median(first) - low > BELOW * dip.depth))
    return np.array(far, dtype=bool)


def _shown(dips: pd.DataFrame, steps: NDArray[np.int64]) -> list[int]:
    """Return the first step that surely shows each dip: its onset may be dated too early."""
    first = np.searchsorted(steps, dips["onset"], side="right")
    shown: list[int] = steps[np.minimum(first + EARLY, steps.size - 1)].tolist()
    return shown


def _deepest_fall(steps: NDArray[np.int64], accuracy: FloatArray, begin: Sequence[int]) -> float:
    """Return the deepest fall at a restart but the last: from the level before to the lowest.

    The level is the mean of three evaluations. The lowest is in the first quarter of the cycle,
    where the rate is near to that of the restart.
    """
    falls = [0.0]
    seen = np.isfinite(accuracy)
    steps, accuracy = steps[seen], accuracy[seen]
    for restart, later in pairwise(begin):
        before = accuracy[steps < restart][-3:]
        after = accuracy[(steps >= restart) & (steps < restart + (later - restart) / 4)]
        if before.size and after.size:
            falls.append(float(before.mean() - after.min()))
    return max(falls)


def still_at_restart(
    dips: pd.DataFrame, steps: NDArray[np.int64], begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each dip whether the last restart may yet explain it: its cycle is under way.

    `steps`: of the evaluations so far. The cycle takes an `expected_cycle`; the first one is as
    long as the run until its restart.
    """
    if not begin or steps[-1] >= begin[-1] + (expected_cycle(begin) or begin[-1] - steps[0]):
        return np.zeros(len(dips), dtype=bool)
    return _open_at_last(dips, steps, begin)


def _open_at_last(
    dips: pd.DataFrame, steps: NDArray[np.int64], begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each dip whether it begins at the last restart and has not recovered."""
    shown = _shown(dips, steps)
    begins = explained_by_restarts(dips["onset"], np.zeros(len(dips)), shown, begin)
    late = np.array(shown) >= begin[-1]
    found: NDArray[np.bool_] = begins & late & dips["recovery"].isna().to_numpy()
    return found
