"""Bursts: spikes of several layers as one event, with the step at which each layer joined."""

import numpy as np
import pandas as pd

from stabkit.detect.robust import IntArray

SPIKES = ["layer", "depth", "onset", "end", "ratio"]  # columns that the spikes must have
BURSTS = {"onset": "int64", "end": "int64", "layers": "int64", "first": "object", "ratio": "float"}
GAP = 10  # most steps from the onset in one layer to that in the next
ONSETS = {"burst": "int64", "layer": "object", "depth": "int64", "onset": "int64", "lag": "int64"}

_NO_BURSTS = pd.DataFrame(columns=list(BURSTS)).astype(BURSTS)
_NO_ONSETS = pd.DataFrame(columns=list(ONSETS)).astype(ONSETS)


def find_bursts(spikes: pd.DataFrame, gap: int = GAP) -> pd.DataFrame:
    """Join the spikes of all layers of one run into bursts; return one row per burst.

    `spikes`: the rows of `find_spikes` of each layer with columns layer and depth, in any order.
    A spike joins the previous burst if it begins at most `gap` steps after the latest onset in that
    burst and its layer is not in the burst yet. So a burst may travel through the layers for longer
    than `gap`, where a fixed window would cut it. It cannot go on forever, because a layer that
    spikes again begins a new burst. Spikes that begin at the same step are never divided.

    Columns: onset and end (first onset and last flagged step of any layer), layers (how many),
    first (the layers that spiked first, in depth order, joined by `, `), ratio (the largest rise
    over a layer's own median). Raises ValueError for missing columns, a negative gap and a layer
    that spikes twice at one step.
    """
    ordered, number = _numbered(spikes, gap)
    if ordered.empty:  # most runs are healthy: save the grouping
        return _NO_BURSTS.copy()
    rows = []
    for _, burst in ordered.groupby(number):
        onset = burst["onset"].min()
        first = burst.loc[burst["onset"] == onset, "layer"].astype(str)
        rows.append((onset, burst["end"].max(), len(burst), ", ".join(first), burst["ratio"].max()))
    return pd.DataFrame(rows, columns=list(BURSTS)).astype(BURSTS)


def layer_onsets(spikes: pd.DataFrame, gap: int = GAP) -> pd.DataFrame:
    """Return the spikes that `find_bursts` joins, one row each, in order of onset and depth.

    Columns: burst (row of `find_bursts`), layer, depth, onset (step), lag (steps since the first
    onset of the burst; 0 for all layers that were first together).
    """
    ordered, number = _numbered(spikes, gap)
    if ordered.empty:
        return _NO_ONSETS.copy()
    first = ordered.groupby(number)["onset"].transform("min")
    found = ordered.assign(burst=number, lag=ordered["onset"] - first, layer=ordered["layer"])
    return found[list(ONSETS)].astype(ONSETS).reset_index(drop=True)


def _numbered(spikes: pd.DataFrame, gap: int) -> tuple[pd.DataFrame, IntArray]:
    """Return the spikes in order of onset and depth, and the burst number of each, from 0."""
    if missing := [name for name in SPIKES if name not in spikes.columns]:
        raise ValueError(
            f"spikes must have the columns {', '.join(SPIKES)}; missing: {', '.join(missing)}"
        )
    if gap < 0:
        raise ValueError(f"gap must be 0 steps or more, got {gap}")
    if spikes.empty:
        return spikes, np.zeros(0, dtype=np.int64)
    ordered = spikes.sort_values(["onset", "depth"], kind="stable", ignore_index=True)
    twice = ordered[ordered.duplicated(["layer", "onset"])]
    if len(twice):
        layer, onset = twice.iloc[0][["layer", "onset"]]
        raise ValueError(f"layer {layer} spikes twice at step {onset}: give one run at a time")
    number = np.zeros(len(ordered), dtype=np.int64)
    inside: set[str] = set()
    current, latest = -1, 0
    for onset, together in ordered.groupby("onset"):
        layers = set(together["layer"].astype(str))
        if current < 0 or onset - latest > gap or layers & inside:
            current, inside = current + 1, set()
        number[together.index] = current
        inside, latest = inside | layers, onset
    return ordered, number
