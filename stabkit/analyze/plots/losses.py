"""Draw the figure `loss`: the loss of each run over its steps, spikes and departures in bold."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.cells import Cell, cell_label, curve_factor, group_cells, label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.clock import CLOCK, mark_clock, warmup_and_epoch
from stabkit.analyze.plots.curves import loss_curve, loss_events, main_loss, spans_decades
from stabkit.analyze.plots.knn import curve_styles
from stabkit.analyze.plots.knn_lines import Styles
from stabkit.analyze.plots.layer_styles import cross_out, mark_spikes, not_finite_handle
from stabkit.analyze.plots.line_ends import MOST, LineEnd, label_ends
from stabkit.analyze.plots.many import seeds_of_ends
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.style import RC, new_figure

# below the line, whose dashes stay in sight
SHADOW: dict[str, Any] = {"linewidth": 5, "linestyle": "-", "alpha": 0.35, "zorder": 1}
COLUMNS = ["run", "finished", "seed", "panel", "curve", "series", *CLOCK, "step", "value", "event"]


def loss_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row a value of the main loss of each run (`main_loss`).

    Columns: run, finished (whether it came to its end), seed, panel, curve, series (the recorded
    name), warmup and per_epoch (`warmup_and_epoch`), step, value, event. `curve` names the setting
    with the most values, `panel` the others. `event` numbers the spikes of a run from 1, and the
    departure of a loss that left for good; it is 0 outside of them.
    """
    cells = group_cells(runs)
    factor = curve_factor(cells)
    frames = [_rows(run, cell, factor) for cell in cells for run in cell.runs]
    found = [frame for frame in frames if len(frame)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def _rows(run: Diagnosis, cell: Cell, factor: str | None) -> pd.DataFrame:
    name = main_loss(run)
    if name is None:
        return pd.DataFrame(columns=COLUMNS)
    rows = loss_curve(run, name).reset_index().assign(event=0)
    for number, (onset, end) in enumerate(loss_events(run, name), start=1):
        rows.loc[rows["step"].between(onset, end), "event"] = number
    return rows.assign(
        run=run.name,
        finished=run.finished,
        seed=run.settings.get("seed"),
        panel=cell_label(cell, without=factor) if factor else "",
        curve=label(factor, cell.settings[factor]) if factor else cell_label(cell),
        series=name,
        **warmup_and_epoch(run),
    )[COLUMNS]


def draw_loss(frame: pd.DataFrame, ax: Axes, styles: Styles | None = None) -> Axes:
    """Draw losses over steps: a line per run; events have a broad shadow and a mark on top.

    `frame`: rows of `loss_table` for one panel. `styles` by curve; by default from dark to light.
    """
    styles = curve_styles(frame) if styles is None else styles
    for (curve, _), run in frame.groupby(["curve", "run"], sort=False):
        style = styles[str(curve)]
        ax.plot(run["step"], run["value"], linewidth=0.9, **style)
        for _, event in run[run["event"] > 0].groupby("event"):
            ax.plot(event["step"], event["value"], **style | SHADOW)
            mark_spikes(ax, event["step"].head(1), style["color"])
        cross_out(ax, run.loc[~np.isfinite(run["value"]), "step"], style["color"])
    finite = frame["value"][np.isfinite(frame["value"])]
    if spans_decades(frame["value"]):
        ax.set_yscale("log")
    elif len(finite):
        margin = 0.05 * float(finite.max() - finite.min()) or 1.0
        ax.set_ylim(finite.min() - margin, finite.max() + margin)
    mark_clock(ax, frame)
    ax.set(title=wrapped(frame["panel"].iloc[0]), xlabel="step")
    shows(ax, frame)
    return ax


def loss_figure(table: pd.DataFrame) -> Figure:
    """Draw panels by all factors except the one with the most values, which tells curves apart."""
    return _figure(table, list(table["panel"].unique()))


def loss_panels(table: pd.DataFrame) -> list[Figure]:
    """Draw each panel as a figure of its own, all on one scale."""
    return [_figure(table, [panel]) for panel in table["panel"].unique()]


def _figure(table: pd.DataFrame, panels: list[Any]) -> Figure:
    styles = curve_styles(table)
    with mpl.rc_context(RC):
        figure = new_figure(0.3 + max(4.2, 3.4 * len(panels)), 3.1)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        scale = Figure().subplots()  # that of all panels
        draw_loss(table, scale, styles)
        for ax, panel in zip(axes, panels, strict=True):
            draw_loss(table[table["panel"] == panel], ax, styles)
        axes[0].set(yscale=scale.get_yscale(), ylim=scale.get_ylim(), ylabel=loss_axis(table))
        few = table.groupby("panel")["curve"].nunique().max() <= MOST
        for ax, panel in zip(axes, panels, strict=True):
            if few:
                label_ends(ax, _ends(table[table["panel"] == panel], styles, axes[0]))
        handles = [] if few else [
            Line2D([], [], linewidth=1.3, label=wrapped(c), **style) for c, style in styles.items()
        ]  # fmt: skip
        if (table["event"] > 0).any():
            handles.append(Line2D([], [], color="0.3", label="spike or departure", **SHADOW))
        if not np.isfinite(table["value"]).all():
            handles.append(not_finite_handle())
        shown = table[table["panel"].isin(panels)]
        handles.append(Line2D([], [], linestyle="", label=seeds_of_ends(shown)))
        if few:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        else:
            figure.legend(handles=handles, loc="outside right center")
    return figure


def _ends(rows: pd.DataFrame, styles: Styles, ax: Axes) -> list[LineEnd]:
    """Name each curve at the mean of the last values of the runs that finished, or else of all."""
    ends = []
    for curve, one in rows.groupby("curve", sort=False):
        finite = one[np.isfinite(one["value"])]
        if len(finite):
            ended = finite[finite["finished"]]
            last = float((finite if ended.empty else ended).groupby("run")["value"].last().mean())
            said = f"{last:#.3g} so far" if ended.empty else f"{last:#.3g}"
            at = math.log(last) if ax.get_yscale() == "log" else last
            ends.append(LineEnd(at, f"{curve} · {said}" if curve else "", styles[str(curve)]))
    return ends


def loss_axis(table: pd.DataFrame) -> str:
    return wrapped(" or ".join(table["series"].unique()))
