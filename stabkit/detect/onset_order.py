"""Onset order: which layer spikes first over all bursts, and by how many steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from stabkit.detect.robust import FloatArray, IntArray, median_interval

TAIL = 0.025  # probability on either side of a 95 % interval
COLUMNS = {
    "layer": "object",
    "depth": "int64",
    "events": "int64",
    "alone": "int64",
    "first": "float64",
    "expected": "float64",
    "lag": "float64",
    "low": "float64",
    "high": "float64",
}


@dataclass(frozen=True)
class OrderTest:
    """How long after the shallow layer the deep one spikes: `events` = `before` + `after` + `ties`.

    `lag` is the median number of steps from the shallow onset to the deep one, ties included, with
    its 95 % interval `low` to `high` (infinite for fewer than six events). `p_value` is exact and
    two-sided, for a median lag of at most `every` steps, the distance of two values. It is .05 or
    less exactly where the interval excludes such a lag.
    """

    events: int
    before: int
    after: int
    ties: int
    p_value: float
    lag: float
    low: float
    high: float
    every: int = 1

    @property
    def order(self) -> Literal["shallow first", "deep first", "undecided"]:
        """Which is first; told only if the interval of the lag excludes 0 and `every` steps."""
        if self.low > self.every:
            return "shallow first"
        return "deep first" if self.high < -self.every else "undecided"


@dataclass(frozen=True)
class LeadTest:
    """How often a layer is the first of a burst, against chance, and by how many steps.

    `events` are the bursts of several layers that include it. `first` counts those that it leads,
    ties shared, and `expected` is what chance would give, as in `onset_order`. `odds` is how many
    times larger than by chance the odds are that it is among the first, with the exact 95 %
    interval `low` to `high`. `p_value` is two-sided.

    `lead` is the median number of steps from its onset to the median onset of the other layers,
    `lead_low` the lower end of its 95 % interval. `lead_p` is the p-value of a median of `every`
    steps, the distance of two values. A layer that is noisier than the others is more often first
    than by chance, but also more often last, and its median lead is 0.
    """

    events: int
    first: float
    expected: float
    odds: float
    low: float
    high: float
    p_value: float
    lead: float
    lead_low: float
    lead_p: float
    every: int = 1

    @property
    def leads(self) -> bool:
        """Whether it leads by both intervals: the lead must exclude 0 and `every` steps."""
        return self.low > 1 and self.lead_low > self.every


def onset_order(onsets: pd.DataFrame) -> pd.DataFrame:
    """Return one row per layer, in depth order: how often it joins a burst, and how late.

    `onsets`: rows of `layer_onsets`; a column `run` tells several runs apart. A burst of one layer
    has no order and counts in `alone` only.

    Columns: layer, depth, events (bursts of two or more layers that include this one), alone, first
    (events that it led; where k layers are first together, each has 1 / k), expected (what `first`
    would be if all orders of the layers were equally likely: 1 / layers of each burst), lag (median
    steps after the first layer), low, high (exact distribution-free 95 % interval of that median;
    NaN below six events). Bursts are treated as independent, which those of one run may not be.
    """
    events = _burst_key(onsets)
    table = onsets.assign(size=onsets.groupby(events)["layer"].transform("size"))
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
                "first": shared["share"].sum(),
                "expected": (1 / shared["size"]).sum(),
                "lag": float(np.median(lags)) if len(lags) else math.nan,
                "low": low if math.isfinite(low) else math.nan,
                "high": high if math.isfinite(high) else math.nan,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def shallow_first(
    onsets: pd.DataFrame, shallow: str | None = None, deep: str | None = None, every: int = 1
) -> OrderTest:
    """Test whether the deeper layer spikes later than the shallower, by the median of `burst_lags`.

    `every`: steps from one recorded value to the next. A lag of one value is within the error of an
    onset, so an order is told only where the interval of the median lag excludes 0 and `every`
    steps: `OrderTest.order`. The counts before and after decide nothing, however unequal: with a
    median lag of 0 or 1 there may be 24 before and 2 after. Bursts are treated as independent.
    """
    lags = burst_lags(onsets, shallow, deep)
    before, after = int(np.sum(lags > 0)), int(np.sum(lags < 0))
    lag = float(np.median(lags)) if len(lags) else math.nan
    p = min(1.0, 2 * _at_most(lags, every), 2 * _at_most(-lags, every))
    ties = len(lags) - before - after
    low, high = median_interval(lags.astype(float))
    return OrderTest(len(lags), before, after, ties, p, lag, low, high, every)


def burst_lags(
    onsets: pd.DataFrame, shallow: str | None = None, deep: str | None = None
) -> IntArray:
    """Return the steps from the onset of layer `shallow` to that of `deep`, one for each burst.

    Without names, the shallowest layer of a burst is compared with its deepest. One layer on each
    side: without any order both are equally likely to be first, whereas halves of the network would
    favor the half with more layers. Bursts without both layers are left out.
    """
    lags = []
    for _, burst in onsets.groupby(_burst_key(onsets)):
        ordered = burst.sort_values("depth")
        first = ordered[ordered["layer"] == shallow] if shallow else ordered.head(1)
        last = ordered[ordered["layer"] == deep] if deep else ordered.tail(1)
        if len(first) and len(last) and first["depth"].iloc[0] < last["depth"].iloc[0]:
            lags.append(int(last["onset"].iloc[0]) - int(first["onset"].iloc[0]))
    return np.array(lags, dtype=np.int64)


def median_p_value(values: IntArray | FloatArray, median: int) -> float:
    """Return the exact two-sided p-value of this median; values that equal it support it."""
    return min(1.0, 2 * _at_most(values, median), 2 * _at_most(-values, -median))


def _at_most(values: IntArray | FloatArray, bound: int) -> float:
    """Return the chance of so few values at or below `bound` if the median were there."""
    from scipy import stats  # slow to import, and only finished runs need it

    return float(stats.binom.cdf(np.sum(values <= bound), values.size, 0.5))


def first_in_bursts(onsets: pd.DataFrame, layer: str, every: int = 1) -> LeadTest:
    """Test whether a layer leads more bursts than chance, by an exact test over bursts.

    In a burst of n layers, of which k are first together, each layer is among these with
    probability k / n by chance. So a burst of layers that all spike at once says nothing, and
    neither does a burst of one layer.
    `every`: steps from one recorded value to the next.
    """
    events = _burst_key(onsets)
    size = onsets.groupby(events)["layer"].transform("size")
    leaders = onsets.assign(lead=onsets["lag"] == 0).groupby(events)["lead"].transform("sum")
    mine = (onsets["layer"] == layer) & (size > 1)
    chances = (leaders / size)[mine].to_numpy(dtype=float)
    hits = int((onsets["lag"] == 0)[mine].sum())
    shared = onsets[size > 1]
    ahead = [
        float(burst.loc[~own, "onset"].median() - burst.loc[own, "onset"].iloc[0])
        for _, burst in shared.groupby(_burst_key(onsets))
        if (own := burst["layer"] == layer).any()
    ]
    leads = np.array(ahead)
    return LeadTest(
        int(mine.sum()),
        float(onsets["share"][mine].sum()),
        float((1 / size)[mine].sum()),
        *_odds(hits, chances),
        float(np.median(leads)) if leads.size else math.nan,
        median_interval(leads)[0],
        median_p_value(leads, every),
        every,
    )


def _odds(hits: int, chances: FloatArray) -> tuple[float, float, float, float]:
    """Return the factor on the odds of all events, its exact 95 % interval, and the p-value of 1.

    Event i happens with odds factor x chance_i / (1 - chance_i), and `hits` of all events did. The
    number of events is Poisson binomial; its law is found by convolution. Where every chance is 1,
    the factor is NaN and the interval 0 to infinity.
    """
    from scipy import optimize  # slow to import, and only finished runs need it

    open_, sure = chances[chances < 1], int(np.sum(chances == 1))
    total, hits = open_.size, hits - sure
    if not total:
        return math.nan, 0.0, math.inf, 1.0

    def law(log_factor: float) -> FloatArray:
        found = np.ones(1)
        odds = math.exp(log_factor) * open_ / (1 - open_)
        for share in odds / (1 + odds):
            found = np.convolve(found, [1 - share, share])
        return found

    def solve(rising: Callable[[float], float]) -> float:
        return math.exp(float(optimize.brentq(rising, -40, 40)))

    odds, low, high = 0.0 if not hits else math.inf, 0.0, math.inf
    if 0 < hits < total:
        odds = solve(lambda x: float(law(x) @ np.arange(total + 1)) - hits)
    if hits:
        low = solve(lambda x: float(law(x)[hits:].sum()) - TAIL)
    if hits < total:
        high = solve(lambda x: TAIL - float(law(x)[: hits + 1].sum()))
    chance = law(0.0)
    p = 2 * min(float(chance[hits:].sum()), float(chance[: hits + 1].sum()))
    return odds, low, high, min(1.0, p)


def _burst_key(onsets: pd.DataFrame) -> list[str]:
    return [name for name in ("run", "burst") if name in onsets.columns]
