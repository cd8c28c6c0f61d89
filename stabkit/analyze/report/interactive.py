"""Make the zoomable charts of the report: data as JSON, which plotly draws inside the page.

A chart takes the place of a picture and is drawn from the same table, in the same colors.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from stabkit.analyze.accuracy_events import final_level
from stabkit.analyze.cells import wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots.clock import epoch_in, warmup_in
from stabkit.analyze.plots.curves import spans_decades
from stabkit.analyze.plots.grad_norms import grad_norms_axis, grad_norms_table
from stabkit.analyze.plots.knn import curve_styles, drawn_panels, knn_axis, knn_table
from stabkit.analyze.plots.knn_lines import Styles, dip_words
from stabkit.analyze.plots.layer_styles import layer_styles, telling_layers
from stabkit.analyze.plots.losses import loss_axis, loss_table
from stabkit.analyze.plots.note_lines import LONGEST, Notes, notes_by_name, notes_of
from stabkit.analyze.text import shortened
from stabkit.printing import counted

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
SMALL = {"font": {"size": 10}}  # words inside a chart
GRAY = "#999999"
MAX_POINTS = 4000  # per line; a screen has fewer columns
# What is drawn, by figure. Events are shaded here, where a picture has bold lines or zooms.
ABOUT = {
    "knn": "accuracy at every evaluation, dips shaded, final accuracy beside the names",
    "loss": "loss over the steps, spikes and departures shaded",
    "grad-norms": "gradient norm of the first layer and of the last block, the largest bursts "
    "named, dips shaded",
}


@dataclass(frozen=True)
class Chart:
    """A chart in place of a picture of the figure `name`.

    `data` is JSON for `Plotly.newPlot`; `about` says in words what is drawn.
    """

    name: str
    title: str
    about: str
    data: str


def charts(runs: Diagnoses) -> list[Chart]:
    """Return charts in place of the pictures of accuracy, of the loss and of gradient norms."""
    notes = notes_by_name(runs)
    return [*_of_accuracy(runs, notes), *_of_loss(runs, notes), *_of_gradients(runs, notes)]


def _of_accuracy(runs: Diagnoses, notes: Notes) -> list[Chart]:
    table = knn_table(runs)
    if table.empty:
        return []
    panels = drawn_panels(table)
    styles = curve_styles(table[table["curve"].isin({c for rows in panels for c in rows["curve"]})])
    found = []
    for rows in panels:
        rows = rows.assign(value=100 * rows["value"], accuracy=rows["value"])
        traces = [
            _trace(f"{_name(run)} · {_final(run)}", run, styles[str(curve)], 1.5)
            for (curve, _), run in rows.groupby(["curve", "run"], sort=False)
        ]
        shapes = [
            _dip(dip, to_hex(styles[str(dip["curve"].iloc[0])]["color"]))
            for _, dip in rows[rows["dip"] > 0].groupby(["run", "dip"], sort=False)
        ]
        marks = [*_clock(rows), *_chance(rows), *_notes(rows, notes)]
        found.append(_Panel(_title(rows, table), traces, shapes, marks, epoch_in(rows)))
    return _charts("knn", knn_axis(table), found)


def _of_loss(runs: Diagnoses, notes: Notes) -> list[Chart]:
    table = loss_table(runs)
    styles: Styles = {} if table.empty else curve_styles(table)
    scale = "log" if len(table) and spans_decades(table["value"]) else "linear"
    found = []
    for _, rows in table.groupby("panel", sort=False):
        traces = [
            _trace(_name(run), run, styles[str(curve)], 1.0)
            for (curve, _), run in rows.groupby(["curve", "run"], sort=False)
        ]
        shapes = [
            _band(event, to_hex(styles[str(event["curve"].iloc[0])]["color"]))
            for _, event in rows[rows["event"] > 0].groupby(["run", "event"], sort=False)
        ]
        marks = [*_clock(rows), *_notes(rows, notes)]
        found.append(_Panel(_title(rows, table), traces, shapes, marks, epoch_in(rows)))
    return _charts("loss", loss_axis(table), found, scale)


def _of_gradients(runs: Diagnoses, notes: Notes) -> list[Chart]:
    table = grad_norms_table(runs)
    if table.empty:
        return []
    layers = table[table["series"] == "grad_norm"]
    both, styles = telling_layers(layers)[:2], layer_styles(layers)
    found = []
    for cell, rows in table.groupby("cell", sort=False):
        norms = rows[(rows["series"] == "grad_norm") & (rows["relative"] > 0)]
        drawn = [(layer, norms[norms["layer"].astype(str) == layer]) for layer in both]
        traces = [
            _trace(layer, one.assign(value=one["relative"]), styles[layer], 1.2)
            for layer, one in drawn
            if len(one)
        ]
        result = rows[rows["series"] != "grad_norm"]
        inside = result["event"].astype(bool)
        dips = result[inside].groupby((~inside).cumsum()[inside])
        shapes = [_band(dip, "#888888") for _, dip in dips]
        bursts = norms[norms["said"].astype(str) != ""]
        shapes += [
            _line(burst["step"], burst["said"], "#222222") for burst in bursts.to_dict("records")
        ]
        marks = [*_clock(norms), *_notes(rows, notes)]
        if traces:
            found.append(_Panel(str(cell), traces, shapes, marks, epoch_in(norms)))
    return _charts("grad-norms", grad_norms_axis(table).replace("/ ", "/\n"), found, "log")


def _name(run: pd.DataFrame) -> str:
    """Return the name of a line: its curve, and the seed if it is known."""
    seed = run["seed"].iloc[0]
    return str(run["curve"].iloc[0]) + ("" if pd.isna(seed) else f", seed {seed}")


def _final(run: pd.DataFrame) -> str:
    """Return the final accuracy of a run in percent, or the accuracy so far."""
    level = 100 * final_level(run["accuracy"])  # rounded as everywhere
    return f"{level:.1f}" if run["finished"].all() else f"{level:.1f} so far"


def _title(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """Return the name of a panel, and how many of its runs are drawn if not all are."""
    panel = str(rows["panel"].iloc[0])
    every = table.loc[table["panel"] == panel, "run"].nunique()
    drawn = rows["run"].nunique()
    some = f"the {drawn} of {every:,} runs that fared worst" if drawn < every else ""
    return ", ".join(part for part in (panel, some) if part)


def thin(step: Any, value: Any) -> tuple[Any, Any]:
    """Return the lowest and highest point of each of `MAX_POINTS` / 2 stretches.

    A series of `MAX_POINTS` values or fewer is returned whole.
    """
    if len(step) <= MAX_POINTS:
        return step, value
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(step)), MAX_POINTS // 2):
        finite = stretch[np.isfinite(value[stretch])]
        if finite.size:
            kept |= {int(finite[np.argmin(value[finite])]), int(finite[np.argmax(value[finite])])}
        else:
            kept.add(int(stretch[0]))  # keep the gap visible
    chosen = sorted(kept)
    return step[chosen], value[chosen]


def _trace(name: str, rows: pd.DataFrame, style: dict[str, Any], width: float) -> dict[str, Any]:
    step, value = thin(rows["step"].to_numpy(), rows["value"].to_numpy())
    dash = style.get("linestyle", "-")
    return {
        "type": "scatter",
        "mode": "lines",
        "name": html.escape(name),  # plotly reads its texts as HTML
        "x": step.tolist(),
        "y": [float(f"{v:.5g}") if math.isfinite(v) else None for v in value.tolist()],
        "line": {
            "width": width,
            "color": to_hex(style["color"]),
            "dash": DASHES.get(dash, "longdashdot") if isinstance(dash, str) else "longdashdot",
        },
        "hovertemplate": "step %{x:,}<br>%{y:.4g}",
    }


def _dip(rows: pd.DataFrame, color: str) -> dict[str, Any]:
    """Return a shade over a dip; a line at the onset of one that was open when the run ended."""
    recovered = bool(rows["recovered"].all())
    said = dip_words(100 * rows["depth"].iloc[0], recovered)
    if not recovered:  # its words at the bottom: above are those of other dips
        return _line(rows["step"].min(), said, color, at="start")
    return _band(rows, color) | {"label": {"text": said, "textposition": "top left", **SMALL}}


def _line(step: int, said: str, color: str, at: str = "end") -> dict[str, Any]:
    """Return a line at a step, with words to its right, `at` its top (end) or bottom (start)."""
    return {
        "type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1,
        "x0": int(step), "x1": int(step), "line": {"width": 1.5, "color": color, "dash": "dot"},
        "label": {
            "text": _lines(said), "textposition": at, "textangle": 0, "xanchor": "left",
            "yanchor": "top" if at == "end" else "bottom", **SMALL,
        },
    }  # fmt: skip


def _band(rows: pd.DataFrame, color: str) -> dict[str, Any]:
    """Return a shade over the steps of an event."""
    return {
        "type": "rect", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 0},
        "x0": int(rows["step"].min()), "x1": int(rows["step"].max()), "fillcolor": color,
        "opacity": 0.13, "layer": "below",
    }  # fmt: skip


def _notes(rows: pd.DataFrame, notes: Notes) -> list[dict[str, Any]]:
    """Return a line for each note on the runs of a panel, with its text."""
    named = [str(run) for run in rows["run"].unique()]
    return [
        _line(step, shortened(text, LONGEST), "#4d4d4d") for step, text in notes_of(named, notes)
    ]


def _clock(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a line where the warm-up ends, if the runs of a panel agree on it."""
    ended = warmup_in(rows)
    if ended is None:
        return []
    line = _line(int(ended), "warm-up ends", GRAY)
    # upright as in the pictures, and halfway up: dips are named at the top and at the bottom
    line["label"] |= {"textangle": -90, "textposition": "middle", "xanchor": "center"}
    return [line]


def _chance(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a line at the accuracy of guessing, if it is known."""
    chance = 100 * float(rows["chance"].iloc[0])
    if math.isnan(chance):
        return []
    return [{
        "type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": chance, "y1": chance,
        "line": {"width": 1, "color": GRAY},
        "label": {"text": "chance", "textposition": "end", "yanchor": "bottom", **SMALL},
    }]  # fmt: skip


class _Panel(NamedTuple):
    title: str
    traces: Sequence[dict[str, Any]]
    events: Sequence[dict[str, Any]]  # shapes
    marks: Sequence[dict[str, Any]]  # shapes: the end of the warm-up, chance, notes
    epoch: float | None  # steps, if known


def _charts(
    name: str, measure: str, panels: Sequence[_Panel], scale: str = "linear"
) -> list[Chart]:
    """Return the panels of one figure, all on one vertical scale."""
    values = [
        math.log10(y) if scale == "log" else y  # plotly takes the limits of a log axis so
        for panel in panels
        for trace in panel.traces
        for y in trace["y"]
        if y is not None and (y > 0 or scale != "log")
    ]
    values += [mark["y0"] for panel in panels for mark in panel.marks if mark["yref"] == "y"]
    margin = 0.05 * (max(values) - min(values)) or 0.5 if values else 0.0
    limits = {"range": [min(values) - margin, max(values) + margin]} if values else {}
    return [_chart(name, measure, panel, {"type": scale, **limits}) for panel in panels]


def _chart(name: str, measure: str, panel: _Panel, axis: dict[str, Any]) -> Chart:
    title, traces, events, marks, epoch = panel
    above = wrapped(title)
    steps = "step" if epoch is None else f"step (an epoch has {epoch:,.0f})"
    more = 17 * above.count("\n")  # pixels; plotly puts the first line where a single one would be
    layout = {
        # directly above the curves, as the buttons are above that
        "title": {
            "text": _lines(above), "font": {"size": 13},
            "yref": "paper", "y": 1, "yanchor": "bottom", "pad": {"b": 6 + more},
        },
        "xaxis": {"title": {"text": steps, "standoff": 4}},
        "yaxis": {"title": {"text": _lines(measure), "font": {"size": 12}}, **axis},
        "hovermode": "closest",
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.22, "font": {"size": 11}},
        "margin": {"t": 55 + more, "r": 10, "l": 65, "b": 40},
        "paper_bgcolor": "#fff",  # as the pictures, in dark mode too
        "plot_bgcolor": "#fff",
        "font": {"color": "#222"},
        "shapes": [*events, *marks],
    }  # fmt: skip
    content = json.dumps({"data": list(traces), "layout": layout}, allow_nan=False)
    marked = f", {counted(len(events), 'event')} marked" if events else ""
    label = f"{title or measure}: {counted(len(traces), 'line')} over steps{marked}."
    return Chart(name, title, " ".join(label.split()), content)


def _lines(text: str) -> str:
    """Return a title as plotly reads it, which is HTML."""
    return html.escape(text).replace("\n", "<br>")


def plotly_script() -> str:
    """Return plotly's JavaScript (MIT license) from its Python package."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
