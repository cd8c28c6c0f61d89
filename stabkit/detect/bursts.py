"""Bursts: spikes of several layers as one event, with the step at which each layer joined."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from stabkit.detect.robust import IntArray

SPIKES = ["layer", "depth", "onset", "end", "ratio"]  # columns that the spikes must have
BURSTS = {"onset": "int64", "end": "int64", "layers": "int64", "first": "object", "ratio": "float"}
GAP = 50  # most steps from the onset in one layer to that in the next (`burst_gap`)
ONSETS = {
    "burst": "int64",
    "layer": "object",
    "depth": "int64",
    "onset": "int64",
    "lag": "int64",
    "share": "float64",
}

_NO_BURSTS = pd.DataFrame(columns=list(BURSTS)).astype(BURSTS)
_NO_ONSETS = pd.DataFrame(columns=list(ONSETS)).astype(ONSETS)


def burst_gap(steps: Iterable[IntArray]) -> int:
    """Return the most steps between two onsets of one burst, for series recorded at `steps`.

    It is `GAP` or, where values are recorded more seldom, the usual distance of two.
    """
    distances = np.diff(np.unique(np.concatenate([np.zeros(0, np.int64), *steps])))
    return max(GAP, int(np.median(distances))) if distances.size else GAP


def find_bursts(spikes: pd.DataFrame, gap: int = GAP) -> pd.DataFrame:
    """Join the spikes of all layers of one run into bursts; return one row per burst.

    `spikes`: the rows of `find_spikes` of each layer with columns layer and depth, in any order.
    A burst holds no layer twice and no pause of more than `gap` steps from one onset to the next
    (`burst_gap` tells how many, for values recorded more seldom than every 50 steps).
    So it may travel through the layers for tens of steps, and it cannot go on forever. Spikes are
    divided into the fewest such bursts. If several divisions have equally few, the one with the
    longest pauses between bursts is taken. Spikes that begin at the same step are never divided.

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
    onset of the burst; 0 for all layers that were first together), share (1 / k for the k layers
    that were first together, 0 for the others).
    """
    ordered, number = _numbered(spikes, gap)
    if ordered.empty:
        return _NO_ONSETS.copy()
    lag = ordered["onset"] - ordered.groupby(number)["onset"].transform("min")
    share = (lag == 0) / (lag == 0).groupby(number).transform("sum")
    found = ordered.assign(burst=number, lag=lag, share=share)
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
    groups = [(int(onset), set(g["layer"].astype(str))) for onset, g in ordered.groupby("onset")]
    starts = _divide([onset for onset, _ in groups], [layers for _, layers in groups], gap)
    at = np.array([groups[i][0] for i in starts])
    return ordered, np.searchsorted(at, ordered["onset"].to_numpy(), side="right") - 1


def _divide(onsets: Sequence[int], layers: Sequence[Collection[str]], gap: int) -> list[int]:
    """Return the positions at which bursts begin; `layers` are those that spike at each onset.

    The best division of the first j onsets is that of the first i, with one burst from i to j: all
    i are tried for which that burst keeps the rules.
    """
    # best[j] is for the first j onsets: the number of bursts, minus the sum of the pauses between
    # them, and where the last burst begins. Among equal ones, the last burst is the shortest.
    best = [(0, 0, 0)]
    for j in range(1, len(onsets) + 1):
        inside: set[str] = set()
        found: list[tuple[int, int, int]] = []
        for i in range(j - 1, -1, -1):
            if not inside.isdisjoint(layers[i]) or (i < j - 1 and onsets[i + 1] - onsets[i] > gap):
                break
            inside.update(layers[i])
            pause = onsets[i] - onsets[i - 1] if i else 0
            found.append((best[i][0] + 1, best[i][1] - pause, i))
        best.append(min(found, key=lambda division: division[:2]))
    starts, j = [], len(onsets)
    while j:
        j = best[j][2]
        starts.append(j)
    return starts[::-1]
