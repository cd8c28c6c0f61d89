"""Draw the figure `knn`: the judged accuracy of each run over its steps, dips shaded."""

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
from stabkit.analyze.plots.curves import accuracy_axis
from stabkit.analyze.plots.many import ONE_BY_ONE, PANELS, WORST, say_left_out
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.style import LINES, RC, new_figure, ramp

Styles = dict[str, dict[str, Any]]
MIDDLE: dict[str, Any] = {"color": "0.35", "linewidth": 1.6, "zorder": 3}


def knn_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row an evaluation.

    Columns: run, seed, panel, curve, metric, step, value, chance, n, k, dip, ceiling, outlier.
    `metric` is kNN, or the accuracy that a run was judged on. `curve` names the setting with the
    most values, `panel` the others. `dip` numbers the dips of a run from 1, and is 0 outside of
    them. `ceiling` is the level from which a dip fell. `outlier` is true of a single evaluation
    that is far too low.
    """
    cells = group_cells(runs)
    factor = curve_factor(cells)
    frames = [_rows(run, cell, factor) for cell in cells for run in cell.runs]
    return pd.concat(frames, ignore_index=True)


def _rows(run: Diagnosis, cell: Cell, factor: str | None) -> pd.DataFrame:
    evals = run.evals(run.metric)
    steps, values = evals["step"].to_numpy(), evals["value"].to_numpy()
    dips, ceiling = np.zeros(len(steps), dtype=int), np.full(len(steps), math.nan)
    for number, dip in enumerate(run.dips.to_dict("records") if len(run.dips) else [], start=1):
        inside = (steps >= dip["onset"]) & (steps <= dip["end"])
        dips[inside] = number
        ceiling[inside] = values[steps == dip["trough"]][0] + dip["depth"]
    curve = label(factor, cell.settings[factor]) if factor else cell_label(cell)
    head = {
        "run": run.name,
        "seed": run.settings.get("seed"),
        "panel": cell_label(cell, without=factor) if factor else "",
        "curve": curve,
        "metric": run.metric,
    }
    rows = evals[["step", "value", "chance", "n", "k"]].assign(dip=dips, ceiling=ceiling)
    rows["outlier"] = rows["step"].isin(run.outliers["onset"])
    rows = rows.assign(**head)
    return rows[[*head, *(name for name in rows if name not in head)]]


def draw_knn(frame: pd.DataFrame, ax: Axes, styles: Styles | None = None) -> Axes:
    """Draw accuracy over steps: a line a run, colored by curve; dips shaded; chance as a line.

    Of very many runs, draw the worst over the median and the middle 80 % of all (`_one_by_one`).
    `frame`: rows of `knn_table` for one panel. `styles` by curve; by default from dark to light.
    """
    drawn, title = _one_by_one(frame), wrapped(frame["panel"].iloc[0])
    styles = curve_styles(drawn) if styles is None else styles
    if len(drawn) < len(frame):
        _draw_middle(ax, frame)
        title += f"\nthe {drawn['run'].nunique()} worst of {frame['run'].nunique():,} runs"
    for curve, rows in drawn.groupby("curve", sort=False):
        _draw_curve(ax, rows, styles[str(curve)])
    _draw_chance(ax, frame)
    shows(ax, frame)
    ax.set(title=title.strip(), xlabel="step")
    return ax


def knn_figure(table: pd.DataFrame) -> Figure:
    """Draw panels by all factors except the one with the most values, which tells curves apart."""
    every = table["panel"].unique()
    panels = _worst_panels(table) if len(every) > PANELS else every
    drawn = pd.concat([_one_by_one(table[table["panel"] == panel]) for panel in panels])
    styles = curve_styles(table[table["curve"].isin(drawn["curve"])])
    with mpl.rc_context(RC):
        figure = new_figure(2 + 3.2 * len(panels), 3.0)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, panel in zip(axes, panels, strict=True):
            draw_knn(table[table["panel"] == panel], ax, styles)
        axes[0].set_ylabel(knn_axis(table) + _how(table.iloc[0]))
        axes[0].set_ylim(bottom=0)
        lines = [
            Line2D([], [], linewidth=1.3, label=wrapped(c), **style) for c, style in styles.items()
        ]
        shown = table[table["panel"].isin(panels)]
        if len(drawn) < len(shown):
            lines.append(Line2D([], [], label="median and middle 80 %\nof all runs", **MIDDLE))
        figure.legend(handles=lines, loc="outside right center")
        if len(panels) < len(every):
            say_left_out(figure, f"{PANELS} of {len(every)} panels: those with the worst runs")
    return figure


def _worst_first(table: pd.DataFrame) -> list[Any]:
    """Return the names of the runs: first the deepest dip, then the lowest last accuracy."""
    runs = table["run"]
    depth = (table["ceiling"] - table["value"]).groupby(runs, sort=False).max().fillna(0)
    last = table["value"].groupby(runs, sort=False).last()
    order = pd.DataFrame({"depth": -depth, "last": last}).sort_values(["depth", "last"])
    return list(order.index)


def _one_by_one(panel: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the runs that get a line: all, or the worst if a panel has too many."""
    if panel["run"].nunique() <= ONE_BY_ONE:
        return panel
    return panel[panel["run"].isin(_worst_first(panel)[:WORST])]


def _worst_panels(table: pd.DataFrame) -> list[Any]:
    """Return the panels that hold the worst runs, in the order of the table."""
    panel_of = table.drop_duplicates("run").set_index("run")["panel"]
    worst = list(dict.fromkeys(panel_of[_worst_first(table)]))[:PANELS]
    return [panel for panel in table["panel"].unique() if panel in worst]


def _draw_middle(ax: Axes, panel: pd.DataFrame) -> None:
    """Draw the median of all runs at each step, and shade from the 10 % to the 90 % quantile."""
    found = panel.groupby("step")["value"].quantile([0.1, 0.5, 0.9]).unstack()
    ax.fill_between(found.index, found[0.1], found[0.9], color="0.88", linewidth=0, zorder=0)
    ax.plot(found.index, found[0.5], **MIDDLE)


def curve_styles(table: pd.DataFrame) -> Styles:
    """Return the line styles of the curves, from dark to light."""
    curves = table["curve"].unique()
    return {
        curve: {"color": color, "linestyle": LINES[i % len(LINES)]}
        for i, (curve, color) in enumerate(zip(curves, ramp(len(curves)), strict=True))
    }


def _draw_curve(ax: Axes, rows: pd.DataFrame, style: dict[str, Any]) -> None:
    """Draw one line a seed, thin if there are several; shade dips up to their ceilings.

    A circle marks a single evaluation that is far too low.
    """
    width = 1.3 if rows["run"].nunique() == 1 else 0.7
    for _, run in rows.groupby("run"):
        ax.plot(run["step"], run["value"], linewidth=width, **style)
        low = run[run["outlier"].astype(bool)]
        if len(low):
            ax.plot(
                low["step"], low["value"], "o", color=style["color"], markersize=6, fillstyle="none"
            )
        for _, dip in run[run["dip"] > 0].groupby("dip"):
            below = dip["value"] < dip["ceiling"]
            ax.fill_between(
                dip["step"], dip["value"], dip["ceiling"], where=below, interpolate=True,
                color=style["color"], alpha=0.3, linewidth=0,
            )  # fmt: skip


def knn_axis(table: pd.DataFrame) -> str:
    """Return the name of the vertical axis."""
    return wrapped(" or ".join(map(accuracy_axis, table["metric"].unique())))


def _how(first: "pd.Series[Any]") -> str:
    """Return k and n if they are known. A run converted from a log has 0 there."""
    known = [f"{name} = {first[name]:,}" for name in ("k", "n") if first[name] > 0]
    return f"\n({', '.join(known)})" if known else ""


def _draw_chance(ax: Axes, table: pd.DataFrame) -> None:
    chance = table["chance"].iloc[0]
    if math.isnan(chance):
        return
    ax.axhline(chance, color="0.6", linewidth=0.7, zorder=0)
    ax.annotate(
        "chance", (table["step"].max(), chance), xytext=(0, 2), textcoords="offset points",
        ha="right", fontsize=7, color="0.4",
    )  # fmt: skip
