"""Choose the curves of a run that figures show: gradients, a loss, an accuracy, by any name."""

import math
import textwrap

import numpy as np
import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.gradient_events import relative_norms
from stabkit.store.names import has_level, words
from stabkit.store.schema import METRIC

WIDE = 30.0  # ratio of the largest loss to the smallest from which a logarithmic axis shows more


def gradient_curves(run: Diagnosis) -> pd.DataFrame:
    """Return gradient norms over their medians: step, layer, depth, value, relative.

    One series a layer; without layers, one for each norm of the whole model, by its name.
    """
    if not run.gradients.norms:
        return relative_norms(run.tables)
    table = run.tables.scalars()
    parts = []
    for depth, name in enumerate(run.gradients.norms):
        rows = table[table["name"] == name]
        middle = float(rows["value"][np.isfinite(rows["value"])].median())
        relative = rows["value"] / (middle if middle > 0 else math.nan)
        part = pd.DataFrame({"step": rows["step"], "layer": name, "depth": depth})
        parts.append(part.assign(value=rows["value"], relative=relative))
    return pd.concat(parts, ignore_index=True)


def main_loss(run: Diagnosis) -> str | None:
    """Return the name of the loss to draw if there is room for one; None without a loss.

    `loss` comes first, then a loss with an event, then one of training, then the first by name.
    """
    spiked = {str(first) for names in run.loss.spikes["first"] for first in str(names).split(", ")}
    eventful = spiked | {*map(str, run.loss.departures["series"]), *map(str, run.unrest["series"])}
    return min(
        run.loss.names,
        key=lambda name: (name != "loss", name not in eventful, not has_level(name)),
        default=None,
    )


def loss_curve(run: Diagnosis, name: str | None = None) -> "pd.Series[float]":
    """Return a loss by step; `main_loss` if none is named; empty without a loss."""
    table = run.tables.scalars()
    rows = table[table["name"].astype(str) == (name or main_loss(run) or "")]
    return rows.set_index("step")["value"]


def loss_events(run: Diagnosis, name: str) -> list[tuple[int, int]]:
    """Return onset and end of each spike of a loss, of its unrest, and of its departure."""
    spikes = run.loss.spikes
    named = spikes["first"].map(lambda first: name in str(first).split(", "))
    left, swung = (rows[rows["series"] == name] for rows in (run.loss.departures, run.unrest))
    of_loss = (spikes[named.astype(bool)], left, swung)
    found = pd.concat([rows[["onset", "end"]] for rows in of_loss])
    return [(int(onset), int(end)) for onset, end in found.itertuples(index=False)]


def accuracy_axis(metric: str) -> str:
    """Return the name of the axis of an accuracy in percent; others than ours by their names."""
    if metric == METRIC:
        return "held-out kNN accuracy, %"
    is_named = any(word.startswith("acc") for word in words(metric))
    return f"accuracy ({metric}), %" if is_named else f"{metric}, %"


def two_lines(name: str) -> str:
    """Return the name of an axis for a low panel, in at most two short lines."""
    lines = textwrap.wrap(name, 18) or [""]
    return "\n".join(lines if len(lines) <= 2 else [lines[0], f"{lines[1][:17]}…"])


def spans_decades(values: "pd.Series[float]") -> bool:
    """Return whether a logarithmic axis shows more of a loss: all above 0, and far apart."""
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > WIDE * finite.min())


def spacing(steps: "pd.Series[int]") -> int:
    """Return the usual number of steps from one value to the next; 1 for fewer than two."""
    distances = np.diff(np.unique(steps))
    return max(1, int(np.median(distances))) if len(distances) else 1
