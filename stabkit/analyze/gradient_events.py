"""Find spikes, swells and growth in the gradient norms of a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stabkit.analyze.refused_series import refuse, refused
from stabkit.analyze.series_spikes import Series, joined, put_names, shifted, spikes_of_series
from stabkit.detect import find_swells
from stabkit.detect.growth import find_growth
from stabkit.detect.joint_spikes import find_layer_spikes
from stabkit.detect.layer_tails import bursts_that_stand_out
from stabkit.detect.robust import ZEROS, rounded_by, zeros_since
from stabkit.detect.spikes import usable_series
from stabkit.detect.swells import find_layer_swells
from stabkit.store.reader import StoredRun


class Raised(NamedTuple):
    """Where gradient norms are raised: one row each, ordered by onset and depth.

    Rows of `find_layer_spikes`, `find_layer_swells` and `find_growth`; the columns layer and depth
    come first. `stands_out` tells the spikes of bursts that chance would not bring
    (`bursts_that_stand_out`).
    """

    spikes: pd.DataFrame
    swells: pd.DataFrame
    growths: pd.DataFrame


def raised_layers(run: StoredRun) -> Raised:
    """Return the spikes, swells and growths of each layer's gradient norm."""
    table = run.signals(["grad_norm"])
    layers, given, usable, why = [], [], [], ""
    for (depth, layer), rows in table.groupby(["depth", "layer"], observed=True):
        try:
            series = rows["step"].to_numpy(), rows["grad_norm"].to_numpy()
            usable.append(usable_series(*series))
            given.append(series)
            layers.append((str(layer), int(depth)))
        except ValueError as error:
            why = refuse(run, str(error), f"spikes of grad_norm in {layer}")
    spiked = _marked(usable, _beyond_rounding(usable, find_layer_spikes(usable)))
    swelled, grown = _lasting(usable, find_layer_swells(usable), spiked)
    spiked, swelled, grown = (
        [put_names(rows, *of) for rows, of in zip(found, layers, strict=True)]
        for found in (spiked, swelled, grown)
    )
    spikes = joined(spiked, "stands_out")
    spikes.attrs["refused"] = why or _died(given, run)
    return Raised(spikes, joined(swelled), joined(grown))


def raised_series(found: Mapping[str, Series], run: StoredRun) -> Raised:
    """Return the spikes, swells and growths of gradient norms of the whole run."""
    spikes = spikes_of_series(found, run)
    if why := refused(spikes) or _died(list(found.values()), run):
        spikes["stands_out"] = True
        spikes.attrs["refused"] = why
        return Raised(spikes, joined([]), joined([]))
    usable = [usable_series(steps, shifted(values)) for steps, values in found.values()]
    spiked = [spikes[spikes["layer"] == name] for name in found]
    spiked = _marked(usable, _beyond_rounding(usable, spiked))
    lasting = _lasting(usable, [find_swells(*one) for one in usable], spiked)
    swelled, grown = (
        [put_names(rows, name, i) for i, (name, rows) in enumerate(zip(found, of, strict=True))]
        for of in lasting
    )
    return Raised(joined(spiked, "stands_out"), joined(swelled), joined(grown))


def _lasting(
    series: Sequence[Series], swells: Sequence[pd.DataFrame], spikes: Sequence[pd.DataFrame]
) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """Return the swells and the growth of each series that nothing else tells.

    A growth with a swell in it is left out, and so is what overlaps a spike that stands out: it is
    a part of that spike.
    """
    swelled, grown = [], []
    found = zip(_beyond_rounding(series, swells), find_growth(series), spikes, strict=True)
    for rows, growth, spiked in found:
        told = len(growth) and rows["onset"].between(growth["onset"][0], growth["end"][0]).any()
        swelled.append(_without(rows, spiked))
        grown.append(_without(growth[:0] if told else growth, spiked))
    return swelled, grown


def _beyond_rounding(
    series: Sequence[Series], events: Sequence[pd.DataFrame]
) -> list[pd.DataFrame]:
    """Return the events of each series that rise by more than the rounding of printed values."""
    kept = []
    for (steps, values), rows in zip(series, events, strict=True):
        rounding = rounded_by(values) if len(rows) else 0.0
        inside = zip(rows["onset"], rows["end"], strict=True)
        peaks = [values[(steps >= onset) & (steps <= end)].max() for onset, end in inside]
        rise = np.array(peaks) * (1 - 1 / rows["ratio"].to_numpy())
        kept.append(rows[rise >= rounding].reset_index(drop=True))
    return kept


def _died(series: Sequence[Series], run: StoredRun) -> str:
    """Say since when every gradient norm is exactly 0 to its end; empty if one is not.

    Spikes are sought in logarithms, which zeros have not. Nothing is trained from there on. Layers
    that are 0 from the first step on may be frozen, unless all of them are.
    """
    found, frozen = [], []
    for steps, values in series:
        known = ~np.isnan(values)
        if np.any(values[known] != 0):
            since = zeros_since(values[known])
            if since is None:
                return ""
            found.append(int(steps[known][since]))
        elif known.sum() >= ZEROS:
            frozen.append(int(steps[known][0]))
    found = found or frozen
    if not found:
        return ""
    return refuse(run, f"they are exactly 0 from step {max(found):,} to the end", "gradients")


def _marked(series: Sequence[Series], spikes: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the spikes of each series with the column `stands_out`."""
    marks = bursts_that_stand_out(series, spikes)
    return [rows.assign(stands_out=mark) for rows, mark in zip(spikes, marks, strict=True)]


def _without(swells: pd.DataFrame, spikes: pd.DataFrame) -> pd.DataFrame:
    """Return the swells or growths that no spike of the same layer that stands out overlaps."""
    spikes = spikes[spikes["stands_out"]]
    if not (len(swells) and len(spikes)):
        return swells
    begin, end = spikes["onset"].to_numpy(), spikes["end"].to_numpy()
    apart = [
        not ((begin <= last) & (first <= end)).any()
        for first, last in zip(swells["onset"], swells["end"], strict=True)
    ]
    return swells[np.array(apart, dtype=bool)].reset_index(drop=True)


def layers_without_gradient(run: StoredRun) -> dict[str, int]:
    """Return the layers whose gradient is missing from some step to the end, and that step.

    Layers count that had `ZEROS` values or more and lack as many at the end, by their own distance
    of values, where another layer has some. A layer that is frozen in mid-training is one; so is
    one that is cut off by mistake.
    """
    table = run.signals(["grad_norm"])
    known = table[table["grad_norm"].notna()]
    if known.empty:
        return {}
    steps, found = np.unique(known["step"]), {}
    for layer, rows in known.groupby(known["layer"].astype(str), sort=False):
        own = np.sort(rows["step"].to_numpy())
        if own.size >= ZEROS and steps[-1] - own[-1] >= ZEROS * np.median(np.diff(own)):
            found[str(layer)] = int(steps[steps > own[-1]][0])
    return found


def relative_norms(run: StoredRun) -> pd.DataFrame:
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
