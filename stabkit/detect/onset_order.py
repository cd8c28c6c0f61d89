"""Onset order: which layer spikes first over all bursts, and by how many steps."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stabkit.detect.robust import median_interval

COLUMNS = {
    "layer": "object",
    "depth": "int64",
    "events": "int64",
    "alone": "int64",
    "first": "int64",
    "expected": "float64",
    "lag": "float64",
    "low": "float64",
    "high": "float64",
}


@dataclass(frozen=True)
class OrderTest:
    """The sign test of shallow before deep: `events` = `before` + `after` + `ties`.

    `lag` is the median number of steps from the shallow onset to the deep one, ties included, with
    its 95 % interval `low` to `high` (infinite for fewer than six events).
    """

    events: int
    before: int
    after: int
    ties: int
    p_value: float
    lag: float
    low: float
    high: float


def onset_order(onsets: pd.DataFrame) -> pd.DataFrame:
    """Return one row per layer, in depth order: how often it joins a burst, and how late.

    `onsets`: rows of `layer_onsets`; a column `run` tells several runs apart. A burst of one layer
    has no order and counts in `alone` only.

    Columns: layer, depth, events (bursts of two or more layers that include this one), alone, first
    (events in which it was first or tied for first), expected (what `first` would be if all orders
    of the layers in each burst were equally likely), lag (median steps after the first layer), low,
    high (exact distribution-free 95 % interval of that median; NaN below six events). Bursts are
    treated as independent, which those of one run may not be.
    """
    events = _burst_key(onsets)
    sizes = onsets.groupby(events)["layer"].transform("size")
    # If all orders are equally likely, a layer of a burst is among its leaders with the probability
    # leaders / layers: ties for first count for each of the tied layers.
    leads = onsets.assign(lead=onsets["lag"] == 0).groupby(events)["lead"].transform("sum")
    table = onsets.assign(size=sizes, chance=leads / sizes)
    rows = []
    for (depth, layer), found in table.groupby(["depth", "layer"], observed=True):
        shared = found[found["size"] > 1]
        lags = shared["lag"].to_numpy(dtype=float)
        low, high = median_interval(lags)
        rows.append(
            {
                "layer": str(layer),
                "depth": depth,
                "events": len(shared),
                "alone": len(found) - len(shared),
                "first": int(np.sum(lags == 0)),
                "expected": shared["chance"].sum(),
                "lag": float(np.median(lags)) if len(lags) else math.nan,
                "low": low if math.isfinite(low) else math.nan,
                "high": high if math.isfinite(high) else math.nan,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def shallow_first(
    onsets: pd.DataFrame, shallow: str | None = None, deep: str | None = None
) -> OrderTest:
    """Test whether the shallower layer spikes before the deeper: an exact sign test over bursts.

    Each burst compares the layer `shallow` with the layer `deep`; without names, the shallowest
    layer of the burst with its deepest. One layer on each side: without any order both are equally
    likely to be first, whereas halves of the network would favor the half with more layers. Bursts
    without both layers are left out.

    Ties do not count in `p_value`, the two-sided binomial one; if all are ties it is 1. Bursts are
    treated as independent.
    """
    from scipy import stats  # slow to import, and only finished runs need it

    lags = []
    for _, burst in onsets.groupby(_burst_key(onsets)):
        ordered = burst.sort_values("depth")
        first = ordered[ordered["layer"] == shallow] if shallow else ordered.head(1)
        last = ordered[ordered["layer"] == deep] if deep else ordered.tail(1)
        if len(first) and len(last) and first["depth"].iloc[0] < last["depth"].iloc[0]:
            lags.append(int(last["onset"].iloc[0]) - int(first["onset"].iloc[0]))
    values = np.array(lags, dtype=float)
    before, after = int(np.sum(values > 0)), int(np.sum(values < 0))
    p = float(stats.binomtest(before, before + after).pvalue) if before + after else 1.0
    lag = float(np.median(values)) if len(values) else math.nan
    ties = len(values) - before - after
    return OrderTest(len(values), before, after, ties, p, lag, *median_interval(values))


def _burst_key(onsets: pd.DataFrame) -> list[str]:
    return [name for name in ("run", "burst") if name in onsets.columns]
