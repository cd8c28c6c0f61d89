"""What the detectors find in a run, by the names the tables of a run use.

A series that a detector refuses is named in a LeftOutWarning; what is returned then is empty and
says so: `refused(found)`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stabkit.detect import (
    find_collapse,
    find_dips,
    find_drift,
    find_spikes,
    find_stuck_loss,
)
from stabkit.detect.collapse import NOTHING
from stabkit.rundir import left_out
from stabkit.store.reader import Run

LONGEST = 10_000_000  # steps: more are samples or seconds, and a null over them has no use
COLLAPSE = {
    "feature_std": find_collapse,
    "embedding_std": find_collapse,
    "effective_rank": find_collapse,
    "loss_relative": find_stuck_loss,
}
MIN_HISTORY = 20  # steps that `find_spikes` needs before the first it can find


def dips(run: Run, metric: str = "knn_heldout") -> pd.DataFrame:
    """`find_dips` on an evaluation of the run, paired over its samples where bits are there.

    Also `end`: the recovery, or the last evaluation of a dip that the run ended in; how long it
    lasted in `steps`, `samples` and `epochs` (NaN where the settings do not tell the batch, or the
    size of the data).
    """
    run = run.keeping()  # the bits are then those of the evaluations, while the run trains on
    evals = run.evals(metric)
    chance = float(evals["chance"].iloc[0]) if len(evals) else 0.0

    def find() -> pd.DataFrame:
        known = 0.0 if math.isnan(chance) else chance
        return find_dips(**_series(run, metric), chance=known)

    found = _sought(run, f"dips of {metric}", find, lambda: find_dips([], []))
    if math.isnan(chance):
        found["relative_depth"] = math.nan
    found = found.assign(end=found["recovery"].fillna(evals["step"].max()))
    steps = found["end"] - found["onset"]
    samples = steps * (_number(run, "train.batch") or math.nan)
    epochs = samples / (_number(run, "data.num_train") or math.nan)
    return found.assign(steps=steps, samples=samples, epochs=epochs)


def _number(run: Run, key: str) -> float:
    value = run.settings.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def drifts(run: Run, metric: str = "knn_heldout") -> pd.DataFrame:
    """`find_drift` on an evaluation of the run."""
    run = run.keeping()
    what = f"drift of {metric}"
    return _sought(
        run, what, lambda: find_drift(**_series(run, metric)), lambda: find_drift([], [])
    )


def _series(run: Run, metric: str) -> dict[str, Any]:
    evals = run.evals(metric)
    return {
        "step": evals["step"].to_numpy(),
        "accuracy": evals["value"].to_numpy(),
        "n": evals["n"].to_numpy() if counts_known(evals) else None,
        "correct": run.correct(metric),
    }


def counts_known(evals: pd.DataFrame) -> bool:
    """Whether it is known on how many samples; not so in a run converted without `--n`."""
    return bool((evals["n"] > 0).all())


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
        events = _sought(run, f"collapse of {signal}", find, lambda: find_collapse([], []))
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
    """`find_spikes` on each layer; columns layer and depth in front, ordered by onset and depth.

    The more values a run has, the more of them stand out by chance: the threshold is a robust z of
    6 for up to 1,000 values and one more for every ten times as many, about what keeps false
    alarms from growing with the run (docs/detectors.md).
    """
    found = []
    table = run.signals([signal])
    threshold = 6 + math.log10(max(1.0, table[signal].count() / 1000))
    for (depth, layer), rows in table.groupby(["depth", "layer"], observed=True):
        series = rows["step"].to_numpy(), rows[signal].to_numpy()
        find = partial(find_spikes, *series, threshold=threshold)
        events = _sought(run, f"spikes of {signal} in {layer}", find, lambda: find_spikes([], []))
        events.insert(0, "depth", depth)
        events.insert(0, "layer", layer)
        found.append(events)
    if not found:
        return pd.DataFrame(columns=["layer", "depth", "onset", "peak", "end", "height", "ratio"])
    spiked = pd.concat([f for f in found if len(f)] or found[:1], ignore_index=True)
    spiked.attrs["refused"] = any(refused(events) for events in found)
    return spiked.sort_values(["onset", "depth"], ignore_index=True)


def relative_norms(run: Run) -> pd.DataFrame:
    """Gradient norms over each layer's median in the run: step, layer, depth, value, relative.

    Layers without a gradient, such as frozen ones, are left out; medians are of finite values.
    """
    rows = run.signals(["grad_norm"])
    rows = rows.assign(layer=rows["layer"].astype(str)).rename(columns={"grad_norm": "value"})
    # a value that was measured and is no number stays; a layer that never had one goes
    rows = rows[rows.groupby("layer")["value"].transform("count") > 0]
    finite = rows["value"].where(np.isfinite(rows["value"]))
    middle = finite.groupby(rows["layer"]).transform("median")
    return rows.assign(relative=rows["value"] / middle.where(middle > 0)).reset_index(drop=True)


def refused(found: pd.DataFrame) -> bool:
    """Whether nothing was found because the series, or one of them, was refused."""
    return bool(found.attrs.get("refused", False))


def _sought(
    run: Run, what: str, find: Callable[[], pd.DataFrame], nothing: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    try:
        return find()
    except ValueError as error:
        left_out(run.path, str(error), what)
        found = nothing()
        found.attrs["refused"] = True
        return found
