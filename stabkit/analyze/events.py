"""What the detectors find in a run, by the names the tables of a run use.

A series that a detector refuses is named in a LeftOutWarning; what is returned then is empty and
says so: `refused(found)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.detect import (
    find_collapse,
    find_dips,
    find_drift,
    find_spikes,
    find_stuck_loss,
)
from stabkit.detect.collapse import NOTHING
from stabkit.detect.spikes import spike_bar
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


@dataclass(frozen=True)
class Accuracy:
    """One evaluation of a run, at every step at which it was made."""

    run: Run
    metric: str

    @cached_property
    def evals(self) -> pd.DataFrame:
        return self.run.evals(self.metric)

    @cached_property
    def chance(self) -> float:
        """NaN where it is not known."""
        return float(self.evals["chance"].iloc[0]) if len(self.evals) else 0.0

    @cached_property
    def correct(self) -> NDArray[np.bool_] | None:
        """[evals, n], as `Run.correct`, which may raise ValueError."""
        return self.run.correct(self.metric)

    def series(self) -> dict[str, Any]:
        """Return the arguments that `find_dips` and `find_drift` share."""
        return {
            "step": self.evals["step"].to_numpy(),
            "accuracy": self.evals["value"].to_numpy(),
            "n": self.evals["n"].to_numpy() if counts_known(self.evals) else None,
            "correct": self.correct,
        }


def falls(seen: Accuracy) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what `find_dips` and `find_drift` find in an evaluation of the run.

    The dips also have `end`: the recovery, or the last evaluation of a dip that the run ended in;
    and how long they lasted in `steps`, `samples` and `epochs` (NaN where the settings do not tell
    the batch, or the size of the data).
    """
    run = seen.run
    known = 0.0 if math.isnan(seen.chance) else seen.chance
    found = _sought(
        run,
        f"dips of {seen.metric}",
        lambda: find_dips(**seen.series(), chance=known),
        lambda: find_dips([], []),
    )
    sagged = _sought(
        run,
        f"drift of {seen.metric}",
        lambda: find_drift(**seen.series(), dips=None if refused(found) else found),
        lambda: find_drift([], []),
    )
    if math.isnan(seen.chance):
        found["relative_depth"] = math.nan
    found = found.assign(end=found["recovery"].fillna(seen.evals["step"].max()))
    steps = found["end"] - found["onset"]
    samples = steps * (_number(run, "train.batch") or math.nan)
    epochs = samples / (_number(run, "data.num_train") or math.nan)
    return found.assign(steps=steps, samples=samples, epochs=epochs), sagged


def _number(run: Run, key: str) -> float:
    value = run.settings.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


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

    The threshold is `spike_bar` of the values of all layers together.
    """
    found = []
    table = run.signals([signal])
    threshold = spike_bar(int(table[signal].count()))
    for (depth, layer), rows in table.groupby(["depth", "layer"], observed=True):
        series = rows["step"].to_numpy(), rows[signal].to_numpy()
        find = partial(find_spikes, *series, threshold=threshold)
        events = _sought(run, f"spikes of {signal} in {layer}", find, lambda: find_spikes([], []))
        found.append(events)
        if len(events) or len(found) == 1:
            events.insert(0, "depth", depth)
            events.insert(0, "layer", layer)
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
