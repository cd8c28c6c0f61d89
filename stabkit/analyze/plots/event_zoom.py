"""Draw the figure `event-zoom`: what every signal did around an event, aligned at its onset."""

import math
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.cells import group_cells, run_label, wrapped
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.events import relative_norms
from stabkit.analyze.plots.layer_styles import (
    Styles,
    layer_handles,
    layer_styles,
    mark_spikes,
    say_nothing,
    telling_layers,
)
from stabkit.analyze.plots.style import RC, new_figure

MARGIN = (30, 200)  # least and most steps shown on each side; else as many as the event is long
BEFORE = 20  # a value is compared with the median of so many steps if no detector found anything
PANELS = {
    "gradient": "gradient norm /\nmedian of the layer",
    "loss": "loss",
    "knn": "held-out\nkNN accuracy",
}
COLUMNS = ["event", "onset", "end", "panel", "series", "depth", "step", "offset", "value", "spike"]


class _Event(NamedTuple):
    size: float
    label: str
    run: Diagnosis
    onset: int
    end: int


def event_zoom_table(runs: Diagnoses) -> pd.DataFrame:
    """Return rows of `event_zoom_rows` for the deepest dip and the largest burst of the runs.

    If there is neither, return those for the value of a first layer that stands out most from the
    20 values before it. The name of that event says that it is none.
    """
    labelled = [(run_label(cell, run), run) for cell in group_cells(runs) for run in cell.runs]
    chosen = [
        max(found, key=lambda event: event.size)
        for found in (
            [event for label, run in labelled for event in _dips(label, run)],
            [event for label, run in labelled for event in _bursts(label, run)],
        )
        if found
    ]
    if not chosen:
        rises = [rise for label, run in labelled if (rise := _largest_rise(label, run))]
        chosen = sorted(rises, key=lambda event: -event.size)[:1]
    frames = [
        event_zoom_rows(event.run, event.onset, event.end).assign(event=event.label)
        for event in chosen
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)


def event_zoom_rows(run: Diagnosis, onset: int, end: int) -> pd.DataFrame:
    """Return every value drawn for one event of a run, from before its onset to after its end.

    Columns: event (a name: run and step), onset, end (steps), panel (`gradient`, `loss`, `knn`),
    series (a layer, or the name of the panel), depth (of the layer), step, offset (steps since the
    onset), value (gradients over the median of the layer in the run), spike (whether a spike of the
    layer begins here). Gradients are those of the first layer, the last block and the last layer of
    all.
    """
    margin = int(np.clip(end - onset, *MARGIN))
    norms = relative_norms(run.tables)
    norms = norms[norms["layer"].isin(telling_layers(norms))]
    begun = run.spikes
    begun = set(zip(begun["layer"].astype(str), begun["onset"], strict=True))
    gradient = pd.DataFrame(
        {"series": norms["layer"], "depth": norms["depth"].astype(float), "step": norms["step"]}
        | {"value": norms["relative"], "panel": "gradient"}
        | {"spike": [at in begun for at in zip(norms["layer"], norms["step"], strict=True)]}
    )
    others = {
        "loss": run.tables.scalars().query("name == 'loss'").set_index("step")["value"],
        "knn": run.evals("knn_heldout").set_index("step")["value"],
    }
    parts = [gradient] + [
        pd.DataFrame({"step": values.index, "value": values.to_numpy(dtype=float)}).assign(
            series=name, depth=math.nan, panel=name, spike=False
        )
        for name, values in others.items()
    ]
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    rows = rows[rows["step"].between(onset - margin, end + margin)]
    name = f"{run.name}, step {onset}"
    rows = rows.assign(event=name, onset=onset, end=end, offset=rows["step"] - onset)
    return rows[COLUMNS].reset_index(drop=True)


def _dips(label: str, run: Diagnosis) -> list[_Event]:
    return [
        _Event(dip["depth"], f"deepest dip, {label}", run, int(dip["onset"]), int(dip["end"]))
        for dip in run.dips.to_dict("records")
    ]


def _bursts(label: str, run: Diagnosis) -> list[_Event]:
    return [
        _Event(b["ratio"], f"largest gradient burst, {label}", run, b["onset"], b["end"])
        for b in run.bursts.to_dict("records")
    ]


def _largest_rise(label: str, run: Diagnosis) -> _Event | None:
    norms = relative_norms(run.tables)
    norms = norms[norms["layer"].isin(telling_layers(norms)[:1])]
    before = norms["relative"].rolling(BEFORE).median().shift()
    rise = (norms["relative"] / before).where(lambda ratio: np.isfinite(ratio))
    if not rise.notna().any():
        return None
    at = int(norms.loc[rise.idxmax(), "step"])
    what = f"no event found, largest rise of {norms['layer'].iloc[0]}"
    return _Event(float(rise.max()), f"{what}, {label}", run, at, at)


def draw_event_zoom(frame: pd.DataFrame, ax: Axes, styles: Styles | None = None) -> Axes:
    """Draw one panel of one event over the steps since its onset; shade it and mark spikes.

    `frame`: rows of `event_zoom_rows` for one panel. `styles` by layer; by default from dark to
    light.
    """
    layers = frame.rename(columns={"series": "layer"})
    styles = layer_styles(layers) if styles is None else styles
    shown = frame[np.isfinite(frame["value"])]
    for name, series in shown.groupby("series", sort=False):
        style = styles.get(str(name), {"color": "black", "linewidth": 0.9})
        ax.plot(series["offset"], series["value"], **style)
        begun = series.loc[series["spike"].astype(bool), "offset"]
        mark_spikes(ax, begun, style["color"])
    if shown.empty:
        say_nothing(ax, "no finite value")
    if frame["panel"].iloc[0] == "gradient" and (shown["value"] > 0).any():
        ax.set_yscale("log", nonpositive="mask")
    length = int(frame["end"].iloc[0] - frame["onset"].iloc[0])
    ax.axvline(0, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
    ax.axvspan(0, length, color="0.88", linewidth=0, zorder=-1)
    return ax


def event_zoom_figure(table: pd.DataFrame) -> Figure:
    """Draw one column an event and one row a kind of signal."""
    events = list(table["event"].unique())
    gradients = table[table["panel"] == "gradient"].rename(columns={"series": "layer"})
    styles = layer_styles(gradients)
    with mpl.rc_context(RC):
        figure = new_figure(1.0 + 3.2 * len(events), 5.2)
        axes = figure.subplots(
            len(PANELS), len(events), sharex="col", squeeze=False,
            gridspec_kw={"height_ratios": [3, 2, 2]},
        )  # fmt: skip
        for event, column in zip(events, axes.T, strict=True):
            rows = table[table["event"] == event]
            for panel, ax in zip(PANELS, column, strict=True):
                part = rows[rows["panel"] == panel]
                if len(part):
                    draw_event_zoom(part, ax, styles)
                else:
                    say_nothing(ax, "not recorded")
            column[0].set_title(wrapped(event, 40), pad=9)
            column[-1].set_xlabel(f"steps since the onset, step {rows['onset'].iloc[0]}")
        for ax, name in zip(axes[:, 0], PANELS.values(), strict=True):
            ax.set_ylabel(name)
        figure.align_ylabels()
        lines = layer_handles(styles, others=False, spikes=bool(table["spike"].any()))
        shade = Line2D([], [], color="0.88", linewidth=6, label="the event")
        columns = len(lines) + 1 if len(events) > 1 else 3
        figure.legend(handles=[*lines, shade], loc="outside lower center", ncols=columns)
    return figure
