"""Find signs of collapse in the scalars of a run."""

from functools import partial

import pandas as pd

from stabkit.analyze.accuracy_events import final_level
from stabkit.analyze.refused_series import attempt
from stabkit.detect import find_collapse, find_stuck_loss
from stabkit.detect.collapse import NOTHING, SPREADS
from stabkit.store.reader import Run
from stabkit.store.schema import METRIC

COLLAPSE = {**dict.fromkeys(SPREADS, find_collapse), "loss_relative": find_stuck_loss}


def collapses(run: Run, metric: str = METRIC) -> pd.DataFrame:
    """Return every sign of collapse in the scalars; the first column, signal, says which one.

    If the accuracy `metric` ends above its first value, two signs do not count: narrow features
    still tell samples apart, and a loss at chance is a hard task that is learned slowly. Then only
    a loss at zero counts.
    """
    scalars, learned = run.scalars(), _learned(run, metric)
    found = []
    for name, rows in scalars[scalars["name"].isin(COLLAPSE)].groupby("name", observed=True):
        signal, series = str(name), (rows["step"].to_numpy(), rows["value"].to_numpy())
        find = partial(COLLAPSE[signal], *series)
        events = attempt(run, f"collapse of {signal}", find, lambda: find_collapse([], []))
        if learned:
            events = events[(signal == "loss_relative") & (events["level"] <= NOTHING)]
        events.insert(0, "signal", signal)
        found.append(events)
    if not any(len(events) for events in found):
        return pd.DataFrame(columns=["signal", "onset", "end", "start", "level"])
    return pd.concat([events for events in found if len(events)], ignore_index=True)


def _learned(run: Run, metric: str) -> bool:
    values = run.evals(metric)["value"]
    return len(values) > 1 and final_level(values) > values.iloc[0]
