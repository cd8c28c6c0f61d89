"""Find the spikes of all layers of a run, also those that only show in many layers at once."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from stabkit.detect.frames import rows_frame
from stabkit.detect.onsets import half_height_onset
from stabkit.detect.robust import BoolArray, FloatArray, IntArray, median_of_sorted, stretches
from stabkit.detect.spike_scorer import GOES_ON, Flagged, SpikeScorer
from stabkit.detect.spikes import (
    BAR,
    COLUMNS,
    FLOOR,
    MERGE,
    MIN_HISTORY,
    WINDOW,
    Scored,
    measured_together,
    spike_rows,
)

TOGETHER = 5  # steps within which the layers of a burst spike
BEFORE = 30  # values before those steps, which tell the level and its noise
SHARED_BAR = 5.0  # deviations
SHARE = 0.75  # of the layers, that must pass the bar together
FEWEST = 4  # layers; that fewer agree proves too little
QUARTILES = 1.349  # distance of the quartiles of normal noise, in deviations


def find_layer_spikes(layers: Sequence[tuple[IntArray, FloatArray]]) -> list[pd.DataFrame]:
    """Return the rows of `find_spikes` for each layer, with the spikes that layers share.

    `layers`: steps and values of each, as `usable_series` returns them. If three quarters of the
    layers rise within five steps by 5 deviations, this is a spike of each of them, unless it has
    one there. The level and the noise are those of the 30 values before, so that a restless time
    further back does not hide the burst. One layer alone would raise false alarms at this bar; many
    layers at once seldom do. The noise of layers is correlated, so the bar cannot be much lower.
    Layers that were not measured together (`measured_together`) share nothing.
    """
    found = [spike_rows(Scored(*series, _flagged(series[1]))) for series in layers]
    for members, steps, logs, known in measured_together(layers, BEFORE + TOGETHER):
        if len(members) >= FEWEST and len(steps) >= BEFORE + TOGETHER:
            shared = shared_spikes(steps, logs, known)
            for i, rows in zip(members, shared, strict=True):
                found[i] = _with(found[i], rows)
    return found


def _flagged(values: FloatArray) -> list[Flagged]:
    return SpikeScorer(WINDOW, BAR, MIN_HISTORY, FLOOR).add(np.log(values))


def shared_spikes(
    steps: IntArray, logs: FloatArray, known: BoolArray
) -> list[list[tuple[float, ...]]]:
    """Return for each layer the spikes that it shares with others, as rows of `find_spikes`.

    logs [layers, values]; `known`, of that shape: whether a value was measured. A layer does not
    count in a stretch with a value that was not: at a burst it may be infinite.
    """
    rows: list[list[tuple[float, ...]]] = [[] for _ in logs]
    since = np.zeros(len(logs), dtype=np.int64)  # where the last spike of each layer has ended
    heights, level, noise = rises(logs)
    heights = where_measured(heights, known)
    together = shared(heights)
    for begin, end in stretches(together):
        first = begin + BEFORE  # the first stretch holds this value and those up to TOGETHER - 1
        last = end - 1 + BEFORE + TOGETHER
        for i in np.flatnonzero((heights[:, begin:end] >= SHARED_BAR).any(axis=1)):
            z = (logs[i, first:last] - level[i, begin]) / noise[i, begin]
            high = first + np.flatnonzero(z >= GOES_ON)
            high = high[high >= since[i]]  # stretches overlap; a value belongs to one spike
            if not high.size:
                continue
            peak = int(high[logs[i, high].argmax()])
            onset = half_height_onset(steps, logs[i], int(high[0]), peak, int(since[i]))
            since[i] = high[-1] + 1
            times = onset, *steps[[high[0], peak, high[-1]]].tolist()
            rise = float(logs[i, peak] - level[i, begin])
            rows[i].append((*times, rise / float(noise[i, begin]), float(np.exp(rise))))
    return rows


def shared(heights: FloatArray) -> BoolArray:
    """Return in which stretches [stretches] enough of the layers pass the bar.

    Heights are NaN for a layer that was not measured there: it does not count.
    """
    count = np.count_nonzero(~np.isnan(heights), axis=0)
    passing = np.count_nonzero(heights >= SHARED_BAR, axis=0)
    passed: BoolArray = (count >= FEWEST) & (passing >= SHARE * count)
    return passed


def where_measured(heights: FloatArray, known: BoolArray) -> FloatArray:
    """Return the heights of `rises`, NaN for stretches with a value that was not measured."""
    whole = sliding_window_view(known[:, BEFORE:], TOGETHER, axis=1).all(axis=2)
    return np.where(whole, heights, np.nan)


def rises(logs: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return how high each stretch of TOGETHER values rises, and the level and noise before it.

    The stretch k begins at value k + BEFORE. All three are [layers, stretches]; heights are in
    deviations.
    """
    before = np.sort(sliding_window_view(logs[:, :-TOGETHER], BEFORE, axis=1), axis=2)
    level = median_of_sorted(before)
    quarter = (BEFORE - 1) // 4
    spread = before[:, :, BEFORE - 1 - quarter] - before[:, :, quarter]
    noise = np.maximum(FLOOR, spread / QUARTILES)
    highest = sliding_window_view(logs[:, BEFORE:], TOGETHER, axis=1).max(axis=2)
    return (highest - level) / noise, level, noise


def _with(spikes: pd.DataFrame, rows: list[tuple[float, ...]]) -> pd.DataFrame:
    """Return the spikes of a layer, and those of `rows` that lie more than MERGE steps from all."""
    begin, end = spikes["onset"].to_numpy() - MERGE, spikes["end"].to_numpy() + MERGE
    new = [row for row in rows if not ((begin <= row[3]) & (row[0] <= end)).any()]
    if not new:
        return spikes
    added = rows_frame(new, COLUMNS)
    joined = pd.concat([spikes, added]) if len(spikes) else added
    return joined.sort_values("onset", ignore_index=True)
