"""Tell the dips, drifts and loss spikes that warm restarts of the learning rate explain."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.analyze.accuracy_events import Falls
from stabkit.analyze.series_spikes import Series
from stabkit.detect.lr_restarts import (
    NEAR,
    expected_cycle,
    explained_by_restarts,
    explained_dips,
)
from stabkit.detect.robust import FloatArray

# A restart brings a healthy loss back to where it was after the restart before, and no higher. A
# loss that less than doubles is not compared.
LARGE, AS_HIGH = 2.0, 1.2
EARLY = 4  # a quarter of a cycle: there the rate is near to that of the restart
Parted = tuple[pd.DataFrame, pd.DataFrame]


def dips_by_restarts(found: Falls, begin: Sequence[int]) -> Parted:
    """Return the dips that no restart explains, and the others.

    `begin`: steps of restarts.
    """
    explained = explained_dips(found.dips, found.steps, found.accuracy, begin)
    return _parted(found.dips, explained)


def drifts_by_restarts(found: Falls, begin: Sequence[int]) -> Parted:
    """Return the drifts that no restart explains, and the others.

    A restart explains a drift if the accuracy is back at the end of each cycle inside it, to half
    of its depth. `begin`: steps of restarts.
    """
    drifts, steps, accuracy = found.drifts, found.steps, found.accuracy
    ends = [int(at) - 1 for at in np.searchsorted(steps, begin) if at]
    if ends and steps[-1] >= begin[-1] + (1 - NEAR) * expected_cycle(begin):
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
    explained = explained_by_restarts(spikes["onset"], spikes["end"], spikes["onset"], begin)
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


def _parted(rows: pd.DataFrame, apart: NDArray[np.bool_]) -> Parted:
    """Return the rows that are not `apart`, and those that are."""
    if not apart.any():
        return rows, rows[:0]
    return rows[~apart].reset_index(drop=True), rows[apart].reset_index(drop=True)
