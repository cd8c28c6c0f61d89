"""What the detectors find in a run, by the names the tables of a run use.

A series that a detector refuses is named in a LeftOutWarning; what is returned then is empty and
says so: `refused(found)`.
"""

from collections.abc import Callable
from functools import partial

import pandas as pd

from stabkit.detect import find_collapse, find_dips, find_spikes, find_stuck_loss
from stabkit.detect.collapse import NOTHING
from stabkit.rundir import left_out
from stabkit.store.reader import Run

COLLAPSE = {
    "feature_std": find_collapse,
    "embedding_std": find_collapse,
    "effective_rank": find_collapse,
    "loss_relative": find_stuck_loss,
}


def dips(run: Run, metric: str = "knn_heldout") -> pd.DataFrame:
    """`find_dips` on an evaluation of the run, paired over its samples where bits are there.

    Also `end`: the recovery, or the last evaluation of a dip that the run ended in.
    """
    evals = run.evals(metric)

    def find() -> pd.DataFrame:
        return find_dips(
            evals["step"].to_numpy(),
            evals["value"].to_numpy(),
            n=evals["n"].to_numpy(),
            correct=run.correct(metric),
            chance=float(evals["chance"].iloc[0]) if len(evals) else 0.0,
        )

    found = _sought(run, f"dips of {metric}", find, find_dips([], []))
    return found.assign(end=found["recovery"].fillna(evals["step"].max()))


def collapses(run: Run) -> pd.DataFrame:
    """Every sign of collapse that the run's scalars show; column signal in front, which it is.

    Where kNN ends above its untrained value, narrow features still tell images apart and a loss at
    chance is a hard task slowly learned: then only a loss at nothing counts.
    """
    scalars, learned = run.scalars(), _learned(run)
    found = []
    for name, rows in scalars[scalars["name"].isin(COLLAPSE)].groupby("name", observed=True):
        signal, series = str(name), (rows["step"].to_numpy(), rows["value"].to_numpy())
        find = partial(COLLAPSE[signal], *series)
        events = _sought(run, f"collapse of {signal}", find, COLLAPSE[signal]([], []))
        if learned:
            events = events[(signal == "loss_relative") & (events["level"] <= NOTHING)]
        events.insert(0, "signal", signal)
        found.append(events)
    if not any(len(events) for events in found):
        return pd.DataFrame(columns=["signal", "onset", "end", "start", "level"])
    return pd.concat([events for events in found if len(events)], ignore_index=True)


def _learned(run: Run) -> bool:
    values = run.evals("knn_heldout")["value"]
    return len(values) > 1 and final_level(values) > values.iloc[0]


def final_count(values: pd.Series) -> int:
    """A fifth of the evaluations: one alone is noisy, or inside a dip."""
    return max(1, round(len(values) / 5))


def final_level(values: pd.Series) -> float:
    """The median of the last fifth."""
    return float(values.tail(final_count(values)).median())


def spikes(run: Run, signal: str = "grad_norm") -> pd.DataFrame:
    """`find_spikes` on each layer; columns layer and depth in front, ordered by onset and depth."""
    found = []
    none = find_spikes([], [])
    for (depth, layer), rows in run.signals([signal]).groupby(["depth", "layer"], observed=True):
        find = partial(find_spikes, rows["step"].to_numpy(), rows[signal].to_numpy())
        events = _sought(run, f"spikes of {signal} in {layer}", find, none.copy())
        events.insert(0, "depth", depth)
        events.insert(0, "layer", layer)
        found.append(events)
    if not found:
        return pd.DataFrame(columns=["layer", "depth", "onset", "peak", "end", "height", "ratio"])
    table = pd.concat([f for f in found if len(f)] or found[:1], ignore_index=True)
    table.attrs["refused"] = any(refused(events) for events in found)
    return table.sort_values(["onset", "depth"], ignore_index=True)


def bursts(found: pd.DataFrame, gap: int = 10) -> pd.DataFrame:
    """Spikes of all layers that begin within `gap` steps of one another, as one row each.

    Columns onset, end, layers (how many), first (the layers that spiked first, joined by `, `),
    ratio (the largest rise over a layer's own median).
    """
    rows = []
    number = (found["onset"].diff().fillna(0) > gap).cumsum()
    for _, burst in found.groupby(number):
        onset = burst["onset"].min()
        first = burst.loc[burst["onset"] == onset, "layer"].astype(str)
        rows.append((onset, burst["end"].max(), len(burst), ", ".join(first), burst["ratio"].max()))
    return pd.DataFrame(rows, columns=["onset", "end", "layers", "first", "ratio"])


def refused(found: pd.DataFrame) -> bool:
    """Whether nothing was found because the series, or one of them, was refused."""
    return bool(found.attrs.get("refused", False))


def _sought(
    run: Run, what: str, find: Callable[[], pd.DataFrame], nothing: pd.DataFrame
) -> pd.DataFrame:
    try:
        return find()
    except ValueError as error:
        left_out(run.path, str(error), what)
        nothing.attrs["refused"] = True
        return nothing
