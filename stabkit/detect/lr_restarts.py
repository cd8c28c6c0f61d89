"""Find warm restarts of the learning rate, and tell the events that they explain."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

JUMPS_BY, AS_BEFORE = 2.0, 1.05  # times the rate before a restart; times the highest before it
NEAR = 0.05  # of the way to the next restart
GROWS_BY = 4.0  # from one cycle to the next; more is no rule
DEEPER = 1.5  # times the deepest dip at a restart, of one that the run ends in


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
    dips: pd.DataFrame, shown: ArrayLike, now: int, begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each dip whether a restart explains it: it begins there, and ends before the next.

    `dips`: onset, recovery, depth. `shown` [dips]: the step of the first evaluation that shows it.
    `now`: the step of the last evaluation. A dip without a recovery is explained if the last cycle
    is not complete and the dip hardly deeper than those at other restarts.
    """
    seen = np.asarray(shown).tolist()
    ends = dips["recovery"].fillna(math.inf)
    explained = explained_by_restarts(dips["onset"], ends, seen, begin)
    if explained.any() and now < begin[-1] + expected_cycle(begin):
        depth = dips["depth"].to_numpy()
        begins = explained_by_restarts(dips["onset"], np.zeros(len(dips)), seen, begin)
        explained |= begins & np.isinf(ends) & (depth <= DEEPER * depth[explained].max())
    return explained


def still_at_restart(
    dips: pd.DataFrame, shown: ArrayLike, steps: Sequence[int], begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each dip whether the last restart may yet explain it: its cycle is under way.

    `steps`: of the evaluations so far. The cycle takes an `expected_cycle`; the first one is as
    long as the run until its restart.
    """
    if not begin or steps[-1] >= begin[-1] + (expected_cycle(begin) or begin[-1] - steps[0]):
        return np.zeros(len(dips), dtype=bool)
    seen = np.asarray(shown)
    begins = explained_by_restarts(dips["onset"], np.zeros(len(dips)), seen.tolist(), begin)
    found: NDArray[np.bool_] = begins & dips["recovery"].isna().to_numpy() & (seen >= begin[-1])
    return found
