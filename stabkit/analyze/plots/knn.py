"""Draw the figure `knn`: the judged accuracy of each run over its steps, dips marked."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.accuracy_events import final_level
from stabkit.analyze.cells import Cell, cell_label, curve_factor, group_cells, label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.clock import mark_clock, warmup_and_epoch
from stabkit.analyze.plots.curves import accuracy_axis
from stabkit.analyze.plots.free_places import place_labels
from stabkit.analyze.plots.knn_lines import Styles, draw_chance, draw_curve, say_dips
from stabkit.analyze.plots.line_ends import MOST, LineEnd, label_ends
from stabkit.analyze.plots.many import ONE_BY_ONE, PANELS, WORST, say_left_out, seeds_of_ends
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.style import LINES, RC, new_figure, ramp, side_by_side
from stabkit.analyze.verdict import VERDICTS

COLUMNS = 4  # panels side by side
MIDDLE: dict[str, Any] = {"color": "0.35", "linewidth": 1.6, "zorder": 3}


def knn_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row an evaluation.

    Columns: run, finished, seed, panel, curve, metric, warmup, per_epoch, step, value, chance, n,
    k, dip, depth, ceiling, recovered, outlier, verdict. `finished` is false for all of a run that
    did not come to its end. `metric` is kNN, or the accuracy that a run was judged on. `curve`
    names the setting with the most values, `panel` the others. `warmup` is the step at which it
    ends, `per_epoch` the steps of an epoch; NaN if not known. `dip` numbers the dips of a run from
    1, and is 0 outside of them. `depth` is that of the dip, and `ceiling` lies as far above its
    trough; `recovered` is false inside a dip that was open when the run ended. `outlier` is true of
    a single evaluation that is far too low. `verdict` is that of the run, if there are so many that
    only the worst are drawn; else it is empty, since gradients are searched for it.
    """
    cells = group_cells(runs)
    factor = curve_factor(cells)
    many = len(runs) > min(PANELS, ONE_BY_ONE)
    frames = [_rows(run, cell, factor, many) for cell in cells for run in cell.runs]
    return pd.concat(frames, ignore_index=True)


def _rows(run: Diagnosis, cell: Cell, factor: str | None, many: bool) -> pd.DataFrame:
    evals = run.accuracy.evals
    steps, values = evals["step"].to_numpy(), evals["value"].to_numpy()
    dips, depth = np.zeros(len(steps), dtype=int), np.full(len(steps), math.nan)
    ceiling = depth.copy()
    recovered = np.ones(len(steps), dtype=bool)
    found = run.accuracy.dips
    for number, dip in enumerate(found.to_dict("records") if len(found) else [], start=1):
        inside = (steps >= dip["onset"]) & (steps <= dip["end"])
        dips[inside] = number
        depth[inside] = dip["depth"]
        ceiling[inside] = values[steps == dip["trough"]][0] + dip["depth"]
        recovered[inside] = not pd.isna(dip["recovery"])
    curve = label(factor, cell.settings[factor]) if factor else cell_label(cell)
    head = {
        "run": run.name,
        "finished": run.finished,
        "seed": run.settings.get("seed"),
        "panel": cell_label(cell, without=factor) if factor else "",
        "curve": curve,
        "metric": run.accuracy.metric,
        **warmup_and_epoch(run),
    }
    rows = evals[["step", "value", "chance", "n", "k"]].assign(
        dip=dips, depth=depth, ceiling=ceiling
    )
    rows["recovered"] = recovered
    rows["outlier"] = rows["step"].isin(run.accuracy.outliers["onset"])
    rows["verdict"] = run.verdict if many else ""
    rows = rows.assign(**head)
    return rows[[*head, *(name for name in rows if name not in head)]]


def draw_knn(
    frame: pd.DataFrame,
    ax: Axes,
    styles: Styles | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw accuracy in percent over steps: a line per run, colored by curve, named at its end.

    A triangle marks where a dip began, and says how deep it was; a dip that recovered is shaded.
    At the end of a line stands the final accuracy: the median of the last fifth of its evaluations,
    as the mean of the runs that finished.
    With very many runs, draw the worst over the median and the middle 80 % of all (`_one_by_one`).
    `frame`: rows of `knn_table` for one panel. `styles` by curve; by default from dark to light.
    `limits` of the axis, in percent; by default those of the panel.
    """
    drawn, title = _one_by_one(frame), wrapped(frame["panel"].iloc[0])
    styles = curve_styles(drawn) if styles is None else styles
    if len(drawn) < len(frame):
        _draw_middle(ax, frame)
        title += f"\nthe {drawn['run'].nunique()} worst of {frame['run'].nunique():,} runs"
    for curve, rows in drawn.groupby("curve", sort=False):
        draw_curve(ax, rows, styles[str(curve)])
    say_dips(ax, drawn, styles)
    draw_chance(ax, frame)
    ax.set_ylim(limits or _limits(drawn))
    if drawn["curve"].nunique() <= MOST:
        label_ends(ax, [_end(str(c), rows, styles[str(c)]) for c, rows in drawn.groupby("curve")])
    mark_clock(ax, frame)
    shows(ax, frame)
    ax.set(title=title.strip(), xlabel="step")
    return ax


def knn_figure(table: pd.DataFrame) -> Figure:
    """Draw panels by all factors except the one with the most values, which tells curves apart."""
    return _figure(table, _panels(table))


def knn_panels(table: pd.DataFrame) -> list[Figure]:
    """Draw each panel as a figure of its own, all on one scale."""
    return [_figure(table, [panel]) for panel in _panels(table)]


def drawn_panels(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of the runs that get a line, for each panel that is drawn."""
    return [_one_by_one(table[table["panel"] == panel]) for panel in _panels(table)]


def _panels(table: pd.DataFrame) -> list[Any]:
    every = table["panel"].unique()
    return _worst_panels(table) if len(every) > PANELS else list(every)


def _figure(table: pd.DataFrame, panels: list[Any]) -> Figure:
    every = table["panel"].nunique()
    drawn = pd.concat(drawn_panels(table))
    styles = curve_styles(table[table["curve"].isin(drawn["curve"])])
    shown = table[table["panel"].isin(panels)]
    with mpl.rc_context(RC):
        legend = _legend(shown, styles)
        columns = side_by_side(len(panels), COLUMNS)
        rows = math.ceil(len(panels) / columns)
        figure = new_figure(0.3 + 1.5 * bool(legend) + max(4.2, 3.2 * columns), 3.1 * rows)
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, panel in zip(axes, panels, strict=False):
            draw_knn(table[table["panel"] == panel], ax, styles, _limits(drawn))
        for first, ax in zip(range(0, len(panels), columns), axes[::columns], strict=False):
            beside = panels[first : first + columns]
            ax.set_ylabel(knn_axis(shown[shown["panel"].isin(beside)]))
        if legend:
            figure.legend(handles=legend, loc="outside right center")
        left_out = f"{PANELS} of {every} panels: those with the worst runs"
        say_left_out(figure, seeds_of_ends(shown), left_out if every > PANELS else "")
        place_labels(figure)
    return figure


def _legend(shown: pd.DataFrame, styles: Styles) -> list[Line2D]:
    """Return the legend of what is not named at the ends of the lines."""
    lines = []
    drawn = pd.concat([_one_by_one(rows) for _, rows in shown.groupby("panel", sort=False)])
    if drawn.groupby("panel")["curve"].nunique().max() > MOST:
        lines = [
            Line2D([], [], linewidth=1.3, label=wrapped(c), **style) for c, style in styles.items()
        ]
    if len(drawn) < len(shown):
        lines.append(Line2D([], [], label="median and middle 80 %\nof all runs", **MIDDLE))
    return lines


def _limits(drawn: pd.DataFrame) -> tuple[float, float]:
    """Return the lower and upper end of the axis: from chance, or from what is lower."""
    known = 100 * drawn[["value", "ceiling"]].replace([math.inf, -math.inf], math.nan)
    low, high = known["value"].min(), known.max().max()
    chance = 100 * drawn["chance"].min()
    bottom = low if math.isnan(chance) else min(low, chance)
    margin = 0.08 * max(high - bottom, 1.0)
    return max(0.0, bottom - margin), high + margin


def _end(curve: str, rows: pd.DataFrame, style: dict[str, Any]) -> LineEnd:
    """Return the mean final accuracy of the seeds of a curve; without any, the mean so far."""
    finished = rows["finished"]
    counts = rows[finished] if finished.any() else rows
    levels = [100 * final_level(run["value"]) for _, run in counts.groupby("run")]
    level = float(np.nanmean(levels))
    said = f"{level:.1f}" if finished.any() else f"{level:.1f} so far"
    return LineEnd(level, f"{curve} · {said}" if curve else said, style)


def _worst_first(table: pd.DataFrame) -> list[Any]:
    """Return the names of the runs, by verdict, deepest dip and last accuracy, the worst first."""
    runs = table["run"]
    rank = table["verdict"].map(["", *VERDICTS].index).groupby(runs, sort=False).first()
    depth = (table["ceiling"] - table["value"]).groupby(runs, sort=False).max().fillna(0)
    last = table["value"].groupby(runs, sort=False).last()
    order = pd.DataFrame({"rank": rank, "depth": -depth, "last": last})
    return list(order.sort_values([*order.columns]).index)


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
    found *= 100
    ax.fill_between(found.index, found[0.1], found[0.9], color="0.88", linewidth=0, zorder=0)
    ax.plot(found.index, found[0.5], **MIDDLE)


def curve_styles(table: pd.DataFrame) -> Styles:
    """Return the line styles of the curves, from dark to light."""
    curves = table["curve"].unique()
    return {
        curve: {"color": color, "linestyle": LINES[i % len(LINES)]}
        for i, (curve, color) in enumerate(zip(curves, ramp(len(curves)), strict=True))
    }


def knn_axis(table: pd.DataFrame) -> str:
    """Return the name of the vertical axis, with k and n if they are known and all share them."""
    named = wrapped(" or ".join(accuracy_axis(metric) for metric in table["metric"].unique()))
    sizes = {name: table[name].unique() for name in ("k", "n")}  # 0 in a log that was converted
    known = [f"{name} = {found[0]:,}" for name, found in sizes.items() if list(found > 0) == [True]]
    return f"{named}\n({', '.join(known)})" if known else named
