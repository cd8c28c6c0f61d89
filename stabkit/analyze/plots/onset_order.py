"""Draw the figure `onset-order`: how long after the first layer each layer spikes."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.across_runs import onsets, recorded_every
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.order import FEWEST, each_burst, order_words
from stabkit.analyze.plots.style import RC, new_figure, ramp
from stabkit.detect import onset_order, shallow_first
from stabkit.detect.bursts import ONSETS
from stabkit.printing import counted

COUNTS = ["events", "alone"]


def onset_order_table(runs: Diagnoses) -> pd.DataFrame:
    """Return rows of two kinds: `layer` and `event`.

    Rows of kind `layer` are those of `onset_order`, for every layer with a gradient in any run.
    Rows of kind `event` are those of `onsets`, one for each layer of each burst. `every` is the
    number of steps from one recorded value to the next.
    """
    found = onsets(runs)
    layers = pd.concat([run.gradients.layers for run in runs])
    layers = layers.drop_duplicates("layer").sort_values("depth")
    if layers.empty:
        return pd.DataFrame(columns=["kind", "layer", "depth", "lag"])
    order = layers.merge(onset_order(found).drop(columns="depth"), on="layer", how="left")
    order = order.fillna(dict.fromkeys([*COUNTS, "first", "expected"], 0)).astype(
        dict.fromkeys(COUNTS, int)
    )
    parts = [order.assign(kind="layer"), found.assign(kind="event")]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    table["every"] = recorded_every(runs)
    return table[["kind", *(name for name in table.columns if name != "kind")]]


def draw_onset_order(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Draw layers from first to last: a dot a burst, the median lag with its interval, counts.

    With fewer than three bursts there is only a sentence.
    `frame`: that of `onset_order_table`. Bursts of one layer have no order and are only counted.
    """
    layers = frame[frame["kind"] == "layer"].sort_values("depth").to_dict("records")
    events = _events(frame)
    if too_few(frame):
        ax.axis("off")
        ax.set_title(_verdict(frame), loc="left")
        return ax
    (color,) = ramp(1)
    for row, layer in enumerate(layers):
        lags = np.sort(events.loc[events["layer"] == layer["layer"], "lag"].to_numpy(dtype=float))
        # stack equal lags, so that every burst is visible
        stacked = pd.Series(lags).groupby(lags).cumcount().to_numpy() % 5
        ax.plot(lags, row + 0.28 - 0.07 * stacked, "o", color="0.55", markersize=3, linewidth=0)
        if not np.isnan(layer["low"]):
            ax.plot([layer["low"], layer["high"]], [row, row], color=color, linewidth=1.6)
        ax.plot(layer["lag"], row, "D", color=color, markersize=5)
        counted = f"{layer['first']:.3g} of {layer['events']:g}" if layer["events"] else "-"
        for x, text in ((1.10, counted), (1.27, f"{layer['alone']:g}")):
            ax.text(x, row, text, transform=ax.get_yaxis_transform(), ha="center", va="center")
    for x, text in ((1.10, "first in"), (1.27, "alone")):
        ax.text(x, 1.02, text, transform=ax.transAxes, ha="center", va="bottom")
    ax.set_yticks(range(len(layers)), labels=[str(layer["layer"]) for layer in layers])
    ax.set(ylim=(len(layers) - 0.5, -0.5), xlabel="steps after the first layer of the burst")
    ax.set_xlim(-0.5, max(5.0, 1.05 * events["lag"].max() if len(events) else 5.0))
    ax.grid(axis="y", linewidth=0.4, color="0.85")
    ax.set_title(_verdict(frame), loc="left", pad=20)
    return ax


def onset_order_figure(table: pd.DataFrame) -> Figure:
    """Draw one panel: `draw_onset_order`."""
    rows = int((table["kind"] == "layer").sum())
    (color,) = ramp(1)
    with mpl.rc_context(RC):
        if too_few(table):
            figure = new_figure(5.6, 1.0)
            draw_onset_order(table, figure.subplots())
            return figure
        figure = new_figure(5.6, 1.6 + 0.24 * rows)
        draw_onset_order(table, figure.subplots())
        marks = [
            Line2D([], [], marker="D", color=color, label="median; interval from six bursts on"),
            Line2D([], [], marker="o", linestyle="", color="0.55", markersize=3, label="one burst"),
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=2)
    return figure


def too_few(frame: pd.DataFrame) -> bool:
    """Return whether there are fewer than three bursts of several layers."""
    return len(_events(frame).drop_duplicates(["run", "burst"])) < FEWEST


def _events(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the layers of every burst that has more than one."""
    events = frame[frame["kind"] == "event"]
    if events.empty:
        return pd.DataFrame(columns=["run", *ONSETS])
    return events[events.groupby(["run", "burst"])["layer"].transform("size") > 1]


def _verdict(frame: pd.DataFrame) -> str:
    events = _events(frame)
    if events.empty:
        alone = int((frame["kind"] == "event").sum())
        if not alone:
            return "No order to show: these runs have no gradient burst."
        return f"No order to show: each of {counted(alone, 'gradient burst')} is of one layer."
    if too_few(frame):
        return each_burst(events)
    return order_words(shallow_first(events, every=int(frame["every"].max())))
