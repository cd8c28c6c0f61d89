"""Find the learning rate of a run by any of its usual names, as a series and as a setting."""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

RATE = re.compile(r"(^|[^a-z])(lr|learning_?rate)([^a-z]|$)")  # lr.1, train/learning_rate, lr-AdamW


LR = "optim.lr"  # what `stabkit train` calls it


def rate_setting(names: Iterable[str]) -> str:
    """Return which of the settings is the learning rate.

    It is `optim.lr`, or else the only one that is named `lr` or `learning_rate`, alone or after a
    dot. Without one it is `optim.lr` too, for messages.
    """
    found = [key for key in names if key.rpartition(".")[2] in ("lr", "learning_rate")]
    return found[0] if len(found) == 1 else LR


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


def warmup_of(rates: "pd.Series[float]") -> int | None:
    """Return the steps in which the rate rises to its largest value; None without a rate.

    A rate that stays at its first value, or below, for more than half of the way there does not
    rise but jumps: then there was no warm-up, and it is 0. So it is if the rate hardly rises.
    """
    if rates.empty:
        return None
    values = rates.to_numpy()
    peak = int(np.flatnonzero(values >= 0.999 * values.max())[0])
    risen = values[: peak + 1] > 1.001 * values[0]
    if not risen.any() or (peak > 1 and risen.argmax() > peak / 2):
        return 0
    return int(rates.index[peak] - rates.index[0])
