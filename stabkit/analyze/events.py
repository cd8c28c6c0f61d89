"""Run the detectors on the tables of a run.

If a detector refuses a series, a LeftOutWarning names the series, and `refused` is true of the
empty table that is returned.
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

LONGEST = (
    10_000_000  # steps; a longer run counts samples or seconds, which `association` cannot use
)
COLLAPSE = {
    "feature_std": find_collapse,
    "embedding_std": find_collapse,
    "effective_rank": find_collapse,
    "probe_feature_std": find_collapse,
    "probe_rank": find_collapse,
    "teacher_feature_std": find_collapse,
    "teacher_rank": find_collapse,
    "loss_relative": find_stuck_loss,
}
MIN_HISTORY = 20  # steps that `find_spikes` needs before it can find the first spike


@dataclass(frozen=True)
class Accuracy:
    """One evaluation of a run at all its steps."""

    run: Run
    metric: str

    @cached_property
    def evals(self) -> pd.DataFrame:
        return self.run.evals(self.metric)

    @cached_property
    def chance(self) -> float:
        """The accuracy of guessing; NaN if it is not known."""
        return float(self.evals["chance"].iloc[0]) if len(self.evals) else 0.0

    @cached_property
    def correct(self) -> NDArray[np.bool_] | None:
        """[evals, n]: which samples were right (`Run.correct`). Raises ValueError."""
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
    """Return the dips and the drifts of an evaluation: rows of `find_dips` and `find_drift`.

    Dips get further columns. `end` is the recovery, or the last evaluation if the run ended inside
    the dip. `steps`, `samples` and `epochs` say how long the dip lasted; the last two are NaN if
    the settings do not tell the batch size or the size of the data.
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
    """Return whether the sample counts are known; a log converted without `--n` has none."""
    return bool((evals["n"] > 0).all())


def collapses(run: Run) -> pd.DataFrame:
    """Return every sign of collapse in the scalars; the first column, signal, says which one.

    If kNN ends above its untrained value, two signs do not count: narrow features still tell images
    apart, and a loss at chance is a hard task that is learned slowly. Then only a loss at zero
    counts.
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
    """Return how many evaluations make the final level: a fifth. One alone is too noisy."""
    return max(1, round(len(values) / 5))


def final_level(values: pd.Series) -> float:
    """Return the median of the last fifth of the values."""
    return float(values.tail(final_count(values)).median())


def spikes(run: Run, signal: str = "grad_norm") -> pd.DataFrame:
    """Return the rows of `find_spikes` on each layer, ordered by onset and depth.

    The columns layer and depth come first. The threshold is `spike_bar` of the number of values in
    all layers together.
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
    """Return gradient norms over each layer's median: step, layer, depth, value, relative.

    Layers without a gradient, such as frozen ones, are left out. Medians are of finite values.
    """
    rows = run.signals(["grad_norm"])
    rows = rows.assign(layer=rows["layer"].astype(str)).rename(columns={"grad_norm": "value"})
    # drop layers without any value; keep values that were measured and are not finite
    rows = rows[rows.groupby("layer")["value"].transform("count") > 0]
    finite = rows["value"].where(np.isfinite(rows["value"]))
    middle = finite.groupby(rows["layer"]).transform("median")
    return rows.assign(relative=rows["value"] / middle.where(middle > 0)).reset_index(drop=True)


def refused(found: pd.DataFrame) -> bool:
    """Return whether nothing was found because a detector refused the series, or one of them."""
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
