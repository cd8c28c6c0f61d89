"""Tell the dips, drifts and loss spikes that warm restarts of the learning rate explain."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.accuracy_events import Falls
from stabkit.analyze.series_spikes import Series
from stabkit.detect.robust import FloatArray

JUMPS_BY, AS_BEFORE = 2.0, 1.05  # times the rate before a restart; times the highest before it
NEAR = 0.05  # of the way to the next restart
# A restart brings a healthy loss back to where it was after the restart before, and no higher. A
# loss that less than doubles is not compared.
LARGE, AS_HIGH = 2.0, 1.2
EARLY = 4  # a quarter of a cycle: there the rate is near to that of the restart
DEEPER = 1.5  # times the deepest dip at a restart, of one that the run ends in
Parted = tuple[pd.DataFrame, pd.DataFrame]


def restarts(rates: "pd.Series[float]") -> list[int]:
    """Return the steps at which a rate that had decayed jumps up again, as in warm restarts.

    It doubles from one value to the next or rises by more, to no more than it was before: a jump
    to a rate that was never used is no restart (Loshchilov and Hutter 2017).
    """
    values = rates.to_numpy()
    if len(values) < 2:
        return []
    highest = np.maximum.accumulate(values)[:-1]
    jumps = (values[1:] >= JUMPS_BY * values[:-1]) & (values[1:] <= AS_BEFORE * highest)
    return [int(step) for step in rates.index[1:][jumps]]


def dips_by_restarts(found: Falls, begin: Sequence[int]) -> Parted:
    """Return the dips that no restart explains, and the others.

    `begin`: steps of restarts. A dip that the run ends in is explained if the last cycle is not
    complete and the dip hardly deeper than those at other restarts.
    """
    dips = found.dips
    ends = dips["recovery"].fillna(math.inf)
    explained = _explained(dips["onset"], ends, found.shown, begin)
    if explained.any() and found.steps[-1] < begin[-1] + _usual(begin):
        depth = dips["depth"].to_numpy()
        begins = _explained(dips["onset"], np.zeros(len(dips)), found.shown, begin)
        explained |= begins & np.isinf(ends) & (depth <= DEEPER * depth[explained].max())
    return _parted(dips, explained)


def drifts_by_restarts(found: Falls, begin: Sequence[int]) -> Parted:
    """Return the drifts that no restart explains, and the others.

    A restart explains a drift if the accuracy is back at the end of each cycle inside it, to half
    of its depth. `begin`: steps of restarts.
    """
    drifts, steps, accuracy = found.drifts, found.steps, found.accuracy
    ends = [int(at) - 1 for at in np.searchsorted(steps, begin) if at]
    if ends and steps[-1] >= begin[-1] + (1 - NEAR) * _usual(begin):
        ends.append(len(steps) - 1)
    explained = np.zeros(len(drifts), dtype=bool)
    for i, drift in enumerate(drifts.itertuples()):
        over = math.inf if pd.isna(drift.recovery) else drift.recovery
        inside = [at for at in ends if drift.onset < steps[at] <= over]
        best = accuracy[steps <= drift.onset].max()
        explained[i] = bool(inside) and accuracy[inside].min() >= best - drift.depth / 2
    return _parted(drifts, explained)


def spikes_by_restarts(
    spikes: pd.DataFrame, begin: Sequence[int], losses: Mapping[str, Series]
) -> Parted:
    """Return the loss spikes that no restart explains, and the others. `losses`: by name."""
    explained = _explained(spikes["onset"], spikes["end"], spikes["onset"], begin)
    for i, spike in enumerate(spikes.itertuples()):
        if explained[i] and spike.ratio >= LARGE:
            series = losses[str(spike.first).split(", ")[0]]
            explained[i] = _as_after_restart_before(spike, begin, *series)
    return _parted(spikes, explained)


def _as_after_restart_before(
    spike: Any, begin: Sequence[int], steps: NDArray[np.int64], values: FloatArray
) -> bool:
    """Return whether a loss rises no higher than it stood early in the cycle before."""
    last = max(step for step in begin if step <= spike.onset)
    before = max((step for step in begin if step < last), default=int(steps[0]))
    early = values[(steps >= before) & (steps < before + (last - before) / EARLY)]
    peak = values[(steps >= spike.onset) & (steps <= spike.end)].max()
    return bool(len(early) and peak <= AS_HIGH * np.median(early))


def _usual(begin: Sequence[int]) -> float:
    """Return the steps of the last whole cycle; 0 if there is none."""
    return float(begin[-1] - begin[-2]) if len(begin) > 1 else 0.0


def _explained(
    onsets: Iterable[int], ends: Iterable[float], shown: Iterable[int], begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each event whether it begins at a restart and ends before the next.

    `shown`: the first step that shows the event; its onset may lie before. An event that begins
    more than a twentieth of the way to the next restart behind one has another cause. The last
    restart is as far from the next one as from the one before.
    """
    usual = _usual(begin)
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


def _parted(rows: pd.DataFrame, apart: NDArray[np.bool_]) -> Parted:
    """Return the rows that are not `apart`, and those that are."""
    if not apart.any():
        return rows, rows[:0]
    return rows[~apart].reset_index(drop=True), rows[apart].reset_index(drop=True)
