"""What the detectors find in a run, by the names the tables of a run use."""

import pandas as pd

from stabkit.detect import find_dips, find_spikes
from stabkit.store.reader import Run


def dips(run: Run, metric: str = "knn_heldout") -> pd.DataFrame:
    """`find_dips` on an evaluation of the run, paired over its samples where bits are there.

    Also `end`: the recovery, or the last evaluation of a dip that the run ended in.
    """
    evals = run.evals(metric)
    found = find_dips(
        evals["step"].to_numpy(),
        evals["value"].to_numpy(),
        n=evals["n"].to_numpy(),
        correct=run.correct(metric),
        chance=float(evals["chance"].iloc[0]) if len(evals) else 0.0,
    )
    return found.assign(end=found["recovery"].fillna(evals["step"].max()))


def spikes(run: Run, signal: str = "grad_norm") -> pd.DataFrame:
    """`find_spikes` on each layer; columns layer and depth in front, ordered by onset and depth."""
    found = []
    for (depth, layer), rows in run.signals().groupby(["depth", "layer"], observed=True):
        events = find_spikes(rows["step"].to_numpy(), rows[signal].to_numpy())
        events.insert(0, "depth", depth)
        events.insert(0, "layer", layer)
        found.append(events)
    if not found:
        return pd.DataFrame(columns=["layer", "depth", "onset", "peak", "end", "height", "ratio"])
    table = pd.concat([f for f in found if len(f)] or found[:1], ignore_index=True)
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
