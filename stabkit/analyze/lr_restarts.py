"""Tell the dips and loss spikes that warm restarts of the learning rate explain."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.accuracy_events import Falls

JUMPS_BY, AS_BEFORE = 2.0, 1.05  # times the rate before a restart; times the highest before it
NEAR = 0.05  # of the way to the next restart
# A loss that doubles at a restart counts as a spike: restarts of healthy runs bring it back to an
# earlier level.
LARGE = 2.0
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
    """Return the dips that no restart explains, and the others. `begin`: steps of restarts."""
    ends = found.dips["recovery"].fillna(math.inf)
    return _parted(found.dips, _explained(found.dips["onset"], ends, found.shown, begin))


def spikes_by_restarts(spikes: pd.DataFrame, begin: Sequence[int]) -> Parted:
    """Return the loss spikes that no restart explains, and the others, all below `LARGE`."""
    explained = _explained(spikes["onset"], spikes["end"], spikes["onset"], begin)
    return _parted(spikes, explained & (spikes["ratio"].to_numpy(dtype=float) < LARGE))


def _explained(
    onsets: Iterable[int], ends: Iterable[float], shown: Iterable[int], begin: Sequence[int]
) -> NDArray[np.bool_]:
    """Tell for each event whether it begins at a restart and ends before the next.

    `shown`: the first step that shows the event; its onset may lie before. An event that begins
    more than a twentieth of the way to the next restart behind one has another cause. The last
    restart is as far from the next one as from the one before.
    """
    usual = float(begin[-1] - begin[-2]) if len(begin) > 1 else 0.0
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
