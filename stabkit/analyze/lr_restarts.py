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
    explained_dips,
)
from stabkit.detect.robust import FloatArray

# A restart brings a healthy loss back to where it was after the restart before, and no higher. A
# loss that less than doubles is not compared.
LARGE, AS_HIGH = 2.0, 1.2
FIRST, LEVEL = 2, 3  # values: an event may begin so many behind a restart; a level is their median
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


def outliers_by_restarts(found: Falls, begin: Sequence[int]) -> Parted:
    """Return the outliers that no restart explains, and the others.

    A restart explains one of the first evaluations from it on that keeps half of the accuracy.
    `begin`: steps of restarts.
    """
    explained = np.zeros(len(found.outliers), dtype=bool)
    for i, outlier in enumerate(found.outliers.itertuples()):
        last = max((step for step in begin if step <= outlier.onset), default=None)
        if last is not None:
            since = np.count_nonzero((found.steps >= last) & (found.steps < outlier.onset))
            (value,) = found.accuracy[found.steps == outlier.onset]
            explained[i] = since <= FIRST and value >= outlier.depth
    return _parted(found.outliers, explained)


def spikes_by_restarts(
    spikes: pd.DataFrame, begin: Sequence[int], losses: Mapping[str, Series]
) -> Parted:
    """Return the loss spikes that no restart explains, and the others. `losses`: by name."""
    explained = np.zeros(len(spikes), dtype=bool)
    for i, spike in enumerate(spikes.itertuples()):
        steps, values = losses[str(spike.first).split(", ")[0]]
        explained[i] = (
            _begins_at_restart(spike, begin, steps)
            and _back_before_each(spike, begin, steps, values)
            and (spike.ratio < LARGE or _as_after_restart_before(spike, begin, steps, values))
        )
    return _parted(spikes, explained)


def _begins_at_restart(spike: Any, begin: Sequence[int], steps: NDArray[np.int64]) -> bool:
    """Return whether a spike begins near behind a restart, or among the first values there."""
    last = max((step for step in begin if step <= spike.onset), default=None)
    if last is None:
        return False
    later = min(
        (step for step in begin if step > spike.onset), default=last + expected_cycle(begin)
    )
    among_first = np.count_nonzero((steps >= last) & (steps < spike.onset)) <= FIRST
    return bool(among_first or spike.onset <= last + NEAR * (later - last))


def _back_before_each(
    spike: Any, begin: Sequence[int], steps: NDArray[np.int64], values: FloatArray
) -> bool:
    """Return whether a loss is back at each restart inside a spike, which may span several."""
    before = np.median(values[steps < spike.onset][-LEVEL:])
    inside = [at for at in begin if spike.onset < at <= spike.end]
    return all(np.median(values[steps < at][-LEVEL:]) <= AS_HIGH * before for at in inside)


def _as_after_restart_before(
    spike: Any, begin: Sequence[int], steps: NDArray[np.int64], values: FloatArray
) -> bool:
    """Return whether a loss rises no higher than it stood early in the cycle before."""
    last = max(step for step in begin if step <= spike.onset)
    before = max((step for step in begin if step < last), default=int(steps[0]))
    early = values[(steps >= before) & (steps < before + (last - before) / EARLY)]
    peak = values[(steps >= spike.onset) & (steps <= spike.end)].max()
    return bool(len(early) and peak <= AS_HIGH * early.max())


def _parted(rows: pd.DataFrame, apart: NDArray[np.bool_]) -> Parted:
    """Return the rows that are not `apart`, and those that are."""
    if not apart.any():
        return rows, rows[:0]
    return rows[~apart].reset_index(drop=True), rows[apart].reset_index(drop=True)
