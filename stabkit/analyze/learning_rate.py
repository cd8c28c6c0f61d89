"""Find the learning rate that a run recorded, by any of its usual names."""

import math
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

RATE = re.compile(r"(^|[^a-z])(lr|learning_?rate)([^a-z]|$)")  # lr.1, train/learning_rate, lr-AdamW
JUMPS_BY, AS_BEFORE = 2.0, 1.05  # times the rate before a restart; times the highest before it
NEAR = 0.05  # of the way to the next restart


def learning_rate(scalars: pd.DataFrame) -> "pd.Series[float]":
    """Return the recorded learning rate with the largest value, by step; empty if there is none."""
    names = scalars["name"].astype(str)
    named = names[names.map(lambda name: bool(RATE.search(name.lower())))]
    rates = scalars.loc[named.index]
    rates = rates[np.isfinite(rates["value"]) & (rates["value"] > 0)]
    if rates.empty:
        return pd.Series(dtype=float)
    largest = rates.loc[rates["value"].idxmax(), "name"]
    rates = rates[rates["name"] == largest]
    return rates.set_index("step")["value"].sort_index().rename(str(largest))


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


def at_restarts(events: pd.DataFrame, shows: Iterable[int], begin: list[int]) -> list[bool]:
    """Return of each event whether a restart explains it: it begins there and ends before the next.

    `shows`: the first step at which each event is seen; its onset may lie before. `begin`: the
    steps of the restarts. An event that begins more than a twentieth of the way to the next restart
    behind one has another cause.
    """
    found = []
    for onset, end, seen in zip(events["onset"], events["end"], shows, strict=True):
        earlier = [step for step in begin if step <= seen]
        last = earlier[-1] if earlier else None
        later = next((step for step in begin if step > seen), math.inf)
        length = later - last if last is not None and math.isfinite(later) else _usual(begin)
        near = last is not None and onset <= last + NEAR * length
        found.append(near and end < later)
    return found


def _usual(begin: list[int]) -> float:
    """Return the steps from the last restart but one to the last; 0 if there is one alone."""
    return float(begin[-1] - begin[-2]) if len(begin) > 1 else 0.0


def warmup_of(rates: "pd.Series[float]") -> int | None:
    """Return the steps in which the rate rises to its largest value; None without a rate.

    A rate that stays at its first value, or below, for more than half of the way there does not
    rise but jumps: then there was no warm-up, and it is 0.
    """
    if rates.empty:
        return None
    values = rates.to_numpy()
    peak = int(np.flatnonzero(values >= 0.999 * values.max())[0])
    began = int(np.flatnonzero(values[: peak + 1] > 1.001 * values[0])[0]) if peak else 0
    if peak > 1 and began > peak / 2:
        return 0
    return int(rates.index[peak] - rates.index[0])
