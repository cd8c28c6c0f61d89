"""Run the detectors on the tables of a run.

If a detector refuses a series, a LeftOutWarning names the series, and `refused` is true of the
empty table that is returned.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.detect import (
    find_collapse,
    find_departure,
    find_drift,
    find_outliers,
    find_spikes,
    find_stuck_loss,
    find_swells,
)
from stabkit.detect.collapse import CHANCE, NOTHING, SPREADS
from stabkit.detect.dips import search_dips
from stabkit.detect.joint_spikes import find_layer_spikes
from stabkit.detect.layer_tails import stand_out
from stabkit.detect.spikes import COLUMNS, usable_series
from stabkit.detect.swells import find_layer_swells
from stabkit.detect.tail import stands_out
from stabkit.rundir import left_out
from stabkit.store.reader import Run
from stabkit.store.schema import METRIC

# Steps. A longer run counts samples or seconds, which `association` cannot use.
LONGEST = 10_000_000
COLLAPSE = {**dict.fromkeys(SPREADS, find_collapse), "loss_relative": find_stuck_loss}
Series = tuple[NDArray[np.int64], NDArray[np.float64]]  # steps and values
ALONE = 1.5  # times what was expected: from there on a single value of a loss is a spike
STILL = 0.01  # standard deviation over level; a loss at chance scatters less


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


class Falls(NamedTuple):
    """How an accuracy fell: rows of `find_dips`, of possible dips, and of `find_drift`."""

    dips: pd.DataFrame
    possible_dips: pd.DataFrame
    drifts: pd.DataFrame


def falls(seen: Accuracy) -> Falls:
    """Return the dips, the possible dips (`search_dips`) and the drifts of an evaluation.

    Dips get further columns. `end` is the recovery, or the last evaluation if the run ended inside
    the dip. `steps`, `samples` and `epochs` say how long the dip lasted; the last two are NaN if
    the settings do not tell the batch size or the size of the data.
    """
    run = seen.run
    known = 0.0 if math.isnan(seen.chance) else seen.chance
    both = _attempt(
        run,
        f"dips of {seen.metric}",
        lambda: search_dips(**seen.series(), chance=known),
        lambda: search_dips([], []),
    )
    found, possible = (
        both[both["possible"] == asked].drop(columns="possible").reset_index(drop=True)
        for asked in (False, True)
    )
    sagged = _attempt(
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
    return Falls(found.assign(steps=steps, samples=samples, epochs=epochs), possible, sagged)


def _number(run: Run, key: str) -> float:
    value = run.settings.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0


def counts_known(evals: pd.DataFrame) -> bool:
    """Return whether the sample counts are known; a log converted without `--n` has none."""
    return bool((evals["n"] > 0).all())


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
        events = _attempt(run, f"collapse of {signal}", find, lambda: find_collapse([], []))
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


def final_count(values: pd.Series) -> int:
    """Return how many evaluations make the final level: a fifth. One alone is too noisy."""
    return max(1, round(len(values) / 5))


def final_level(values: pd.Series) -> float:
    """Return the median of the last fifth of the values."""
    return float(values.tail(final_count(values)).median())


def raised_layers(run: Run, signal: str = "grad_norm") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the spikes and the swells of each layer, ordered by onset and depth.

    The rows are those of `find_layer_spikes` and `find_layer_swells`; the columns layer and depth
    come first. `stands_out` tells the spikes of bursts that chance would not bring (`stand_out`). A
    swell that overlaps such a spike of its layer is left out: it is the spike's tail.
    """
    table = run.signals([signal])
    layers, usable, refusals = [], [], 0
    for (depth, layer), rows in table.groupby(["depth", "layer"], observed=True):
        try:
            usable.append(usable_series(rows["step"].to_numpy(), rows[signal].to_numpy()))
            layers.append((str(layer), int(depth)))
        except ValueError as error:
            left_out(run.path, str(error), f"spikes of {signal} in {layer}")
            refusals += 1
    spiked, swelled = _marked(usable, find_layer_spikes(usable)), find_layer_swells(usable)
    swelled = [_without(*both) for both in zip(swelled, spiked, strict=True)]
    spiked, swelled = (
        [_named(rows, *of) for rows, of in zip(found, layers, strict=True)]
        for found in (spiked, swelled)
    )
    spikes, swells = _joined(spiked, "stands_out"), _joined(swelled)
    spikes.attrs["refused"] = refusals > 0
    return spikes, swells


def _marked(series: Sequence[Series], spikes: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the spikes of each series with the column `stands_out`."""
    marks = stand_out(series, spikes)
    return [rows.assign(stands_out=mark) for rows, mark in zip(spikes, marks, strict=True)]


def _without(swells: pd.DataFrame, spikes: pd.DataFrame) -> pd.DataFrame:
    """Return the swells that no spike of the same layer that stands out overlaps."""
    spikes = spikes[spikes["stands_out"]]
    if not (len(swells) and len(spikes)):
        return swells
    begin, end = spikes["onset"].to_numpy(), spikes["end"].to_numpy()
    apart = [
        not ((begin <= last) & (first <= end)).any()
        for first, last in zip(swells["onset"], swells["end"], strict=True)
    ]
    return swells[np.array(apart, dtype=bool)].reset_index(drop=True)


def raised_series(found: Mapping[str, Series], run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the spikes and the swells of gradient norms of the whole run, as `raised_layers`."""
    spikes = spikes_of_series(found, run)
    if refused(spikes):
        spikes["stands_out"] = True
        return spikes, _joined([])
    usable = [usable_series(steps, shifted(values)) for steps, values in found.values()]
    spiked = _marked(usable, [spikes[spikes["layer"] == name] for name in found])
    swells = (
        _without(find_swells(*series), rows).pipe(_named, name, i)
        for i, ((name, series), rows) in enumerate(zip(found.items(), spiked, strict=True))
    )
    return _joined(spiked, "stands_out"), _joined(swells)


def spikes_of_series(found: Mapping[str, Series], run: Run) -> pd.DataFrame:
    """Return the rows of `find_spikes` on series of the whole run, such as losses.

    The columns are those of `spikes`: layer holds the name of the series, depth its position. A
    series with negative values is shifted to begin one median above 0.
    """
    return _joined(
        _spikes_of(run, name, i, steps, shifted(values))
        for i, (name, (steps, values)) in enumerate(found.items())
    )


def loss_spikes(found: Mapping[str, Series], run: Run) -> pd.DataFrame:
    """Return the rows of `spikes_of_series` on losses, without what hard batches explain.

    A single value counts only if it is `ALONE` times what was expected or more. And no spike counts
    that the tail of its own series would bring by chance in so many values (`stands_out`).
    """
    table = spikes_of_series(found, run)
    kept = lasts_or_is_large(table)
    for name in table["layer"].unique():
        steps, values = found[name]
        rows = table["layer"] == name
        kept[rows] &= stands_out(*usable_series(steps, shifted(values)), table[rows])
    counted = table[kept].reset_index(drop=True)
    counted.attrs["refused"] = refused(table)
    return counted


def lasts_or_is_large(spikes: pd.DataFrame) -> "pd.Series[bool]":
    """Return for each spike whether it is more than the small rise of a single value."""
    return (spikes["end"] > spikes["flagged"]) | (spikes["ratio"] >= ALONE)


def shifted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with none below 0, which a logarithm needs; as they are if none is.

    The lowest value becomes the distance of the median from it, so that the noise of low values
    is not blown up by the logarithm.
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or (low := float(finite.min())) >= 0:
        return values
    return values - low + (float(np.median(finite)) - low)


def _spikes_of(
    run: Run, name: str, position: int, steps: NDArray[np.int64], values: NDArray[np.float64]
) -> pd.DataFrame:
    find = partial(find_spikes, steps, values)
    return _named(
        _attempt(run, f"spikes of {name}", find, lambda: find_spikes([], [])), name, position
    )


def _named(events: pd.DataFrame, layer: str, depth: int) -> pd.DataFrame:
    if len(events):  # most series are healthy
        events.insert(0, "depth", depth)
        events.insert(0, "layer", layer)
    return events


def _joined(found: Iterable[pd.DataFrame], *more: str) -> pd.DataFrame:
    """Return all rows in order; `more` are columns besides those of `find_spikes`."""
    tables = list(found)
    some = [table for table in tables if len(table)]
    if some:
        spiked = pd.concat(some).sort_values(["onset", "depth"], ignore_index=True)
    else:
        spiked = pd.DataFrame(columns=["layer", "depth", *COLUMNS, *more])
    spiked.attrs["refused"] = any(refused(events) for events in tables)
    return spiked


def departures(found: Mapping[str, Series]) -> pd.DataFrame:
    """Return the rows of `find_departure` on each loss; the first column, series, names it."""
    tables = [find_departure(*series).assign(series=name) for name, series in found.items()]
    columns = ["series", "onset", "end", "best", "level", "ratio"]
    return (
        pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    )


def stuck(found: Mapping[str, Series]) -> pd.DataFrame:
    """Return the losses that never fell, one row each: series, onset, end, start, level.

    Their level stays at that of the first values from the first half to the end, and they hardly
    scatter: a loss that is learned slowly scatters more.
    """
    rows = []
    for name, (steps, values) in found.items():
        usable = values > 0  # NaN is not
        steps, values = steps[usable], values[usable]
        start = float(np.median(values[:5])) if len(values) else math.nan
        pinned = find_stuck_loss(steps, values / start)
        half = values[len(values) // 2 :]
        if len(pinned) and pinned["level"].iloc[0] >= CHANCE and np.std(half) <= STILL * start:
            rows.append((name, pinned["onset"].iloc[0], steps[-1], start, float(np.median(half))))
    return pd.DataFrame(rows, columns=["series", "onset", "end", "start", "level"])


def outliers(seen: Accuracy, dips: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `find_outliers` on an evaluation, without those inside a dip."""
    evals = seen.evals
    counts = evals["n"].to_numpy() if len(evals) else None
    accuracy = evals["step"].to_numpy(), evals["value"].to_numpy(), counts
    found = _attempt(
        seen.run,
        f"outliers of {seen.metric}",
        lambda: find_outliers(*accuracy),
        lambda: find_outliers([], []),
    )
    inside = [bool(((dips["onset"] <= s) & (s <= dips["end"])).any()) for s in found["onset"]]
    return found[~np.array(inside, dtype=bool)].reset_index(drop=True)


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


def _attempt(
    run: Run, what: str, find: Callable[[], pd.DataFrame], nothing: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """Return what `find` finds; if it refuses the series, warn and return `nothing()`, marked."""
    try:
        return find()
    except ValueError as error:
        left_out(run.path, str(error), what)
        found = nothing()
        found.attrs["refused"] = True
        return found
