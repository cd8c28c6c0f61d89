"""Find signs of collapse in the scalars of a run."""

import math
from functools import partial
from typing import Literal

import pandas as pd

from stabkit.analyze.accuracy_events import final_level
from stabkit.analyze.refused_series import attempt
from stabkit.detect import find_collapse, find_fall_to_chance, find_stuck_loss
from stabkit.detect.collapse import NOTHING, SPREADS
from stabkit.store.reader import StoredRun

HELD = 0.03  # an accuracy that ends at most so far below its first value has not fallen
ACCURACY = "accuracy"  # the signal of an accuracy that fell to chance
CALLED = {  # signals in words
    ACCURACY: "accuracy at chance",
    "loss_relative": "loss / chance",
    "feature_std": "spread of features",
    "embedding_std": "spread of embeddings",
    "effective_rank": "rank of features",
    "probe_feature_std": "spread of probe features",
    "probe_rank": "rank of probe features",
    "teacher_feature_std": "spread of teacher features",
    "teacher_rank": "rank of teacher features",
}
COLLAPSE = {**dict.fromkeys(SPREADS, find_collapse), "loss_relative": find_stuck_loss}


def collapsed_and_stuck(run: StoredRun, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return every sign of collapse, and our own loss if it never left chance.

    The first column of a sign, signal, says which it is: a scalar, or "accuracy" if the evaluation
    `metric` fell to a known chance. If it ends above its first value, two signs do not count:
    narrow features still tell samples apart, and a loss at chance is a hard task that is learned
    slowly. Then only a loss at zero counts. If it ends about where it began, a loss at chance is no
    collapse either: nothing was learned, and nothing was lost. It is returned in the columns of
    `loss_events.stuck`.
    """
    scalars, course = run.scalars(), _course(run, metric)
    found = [_fall_to_chance(run, metric)]
    stuck = pd.DataFrame(columns=["series", "onset", "end", "start", "level"])
    for name, rows in scalars[scalars["name"].isin(COLLAPSE)].groupby("name", observed=True):
        signal, series = str(name), (rows["step"].to_numpy(), rows["value"].to_numpy())
        find = partial(COLLAPSE[signal], *series)
        events = attempt(run, f"collapse of {signal}", find, lambda: find_collapse([], []))
        at_chance = (signal == "loss_relative") & (events["level"] > NOTHING)
        if course == "rose":
            events = events[(signal == "loss_relative") & ~at_chance]
        elif course == "held":
            stuck = pd.concat([stuck, events[at_chance].assign(series=signal)])[stuck.columns]
            events = events[~at_chance]
        events.insert(0, "signal", signal)
        found.append(events)
    if not any(len(events) for events in found):
        return pd.DataFrame(columns=["signal", "onset", "end", "start", "level"]), stuck
    return pd.concat([events for events in found if len(events)], ignore_index=True), stuck


def _fall_to_chance(run: StoredRun, metric: str) -> pd.DataFrame:
    evals = run.evals(metric)
    chance = float(evals["chance"].iloc[0]) if len(evals) else math.nan
    events = find_collapse([], [])
    if not math.isnan(chance):
        find = partial(find_fall_to_chance, evals["step"].to_numpy(), evals["value"].to_numpy())
        events = attempt(run, f"fall to chance of {metric}", lambda: find(chance), lambda: events)
    events.insert(0, "signal", ACCURACY)
    return events


def _course(run: StoredRun, metric: str) -> Literal["rose", "held", "fell"]:
    """Return how the accuracy went; without one, what is seen in the loss counts as a fall."""
    values = run.evals(metric)["value"]
    if len(values) < 2:
        return "fell"
    gain = final_level(values) - values.iloc[0]
    return "rose" if gain > 0 else "held" if gain >= -HELD else "fell"
