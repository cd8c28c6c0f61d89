"""Draw the figure `knn`: the judged accuracy of each run over its steps, dips shaded."""

import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.cells import Cell, cell_label, curve_factor, group_cells, label, wrapped
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.plots.curves import accuracy_axis
from stabkit.analyze.plots.style import LINES, RC, new_figure, ramp

Styles = dict[str, dict[str, Any]]


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
    evals = run.evals(run.metric)[["step", "value", "chance", "n", "k"]].assign(
        dip=0, ceiling=math.nan
    )
    evals["outlier"] = evals["step"].isin(run.outliers["onset"])
    for number, dip in enumerate(run.dips.to_dict("records"), start=1):
        inside = evals["step"].between(dip["onset"], dip["end"])
        trough = float(evals.loc[evals["step"] == dip["trough"], "value"].iloc[0])
        evals.loc[inside, "dip"] = number
        evals.loc[inside, "ceiling"] = trough + dip["depth"]
    curve = label(factor, cell.settings[factor]) if factor else cell_label(cell)
    head = {
        "run": run.name,
        "seed": run.settings.get("seed"),
        "panel": cell_label(cell, without=factor) if factor else "",
        "curve": curve,
        "metric": run.metric,
    }
    return evals.assign(**head)[[*head, *evals.columns]]


def draw_knn(frame: pd.DataFrame, ax: Axes, styles: Styles | None = None) -> Axes:
    """Draw accuracy over steps: a line a run, colored by curve; dips shaded; chance as a line.

    `frame`: rows of `knn_table` for one panel. `styles` by curve; by default from dark to light.
    """
    styles = curve_styles(frame) if styles is None else styles
    for curve, rows in frame.groupby("curve", sort=False):
        _draw_curve(ax, rows, styles[str(curve)])
    _draw_chance(ax, frame)
    ax.set(title=wrapped(frame["panel"].iloc[0]), xlabel="step")
    return ax


def knn_figure(table: pd.DataFrame) -> Figure:
    """Draw panels by all factors except the one with the most values, which tells curves apart."""
    panels, styles = table["panel"].unique(), curve_styles(table)
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
        figure.legend(handles=lines, loc="outside right center")
    return figure


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
