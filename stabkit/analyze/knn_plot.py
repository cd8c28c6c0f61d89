"""Figure `knn`: accuracy every few iterations, one curve a run, dips shaded."""

from itertools import groupby
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabkit.analyze.cells import Cell, cell_label, curve_factor, group_cells, label
from stabkit.analyze.events import dips
from stabkit.analyze.style import LINES, RC, new_figure, ramp
from stabkit.store.reader import Run, Runs


def knn_table(runs: Runs) -> pd.DataFrame:
    """One row an evaluation: run, its settings, step, kNN accuracy, chance, and the dip it is in.

    `dip` numbers a run's dips from 1, 0 outside of them; `ceiling` is what a dip fell from.
    """
    frames = []
    for cell in group_cells(runs):
        for run in cell.runs:
            evals = run.evals("knn_heldout")[["step", "value", "chance", "n", "k"]]
            frame = evals.assign(run=run.name, seed=run.settings.get("seed"), **cell.settings)
            frames.append(_with_dips(frame, run))
    return pd.concat(frames, ignore_index=True)


def _with_dips(frame: pd.DataFrame, run: Run) -> pd.DataFrame:
    frame = frame.assign(dip=0, ceiling=float("nan"))
    for number, dip in enumerate(dips(run).itertuples(), start=1):
        end = frame["step"].max() if pd.isna(dip.recovery) else dip.recovery
        inside = frame["step"].between(dip.onset, end)
        trough = float(frame.loc[frame["step"] == dip.trough, "value"].iloc[0])
        frame.loc[inside, ["dip", "ceiling"]] = number, trough + dip.depth
    return frame


def draw_knn(runs: Runs) -> Figure:
    """kNN accuracy over steps: panels by the other factors, curves by the main one, dips shaded."""
    table, cells = knn_table(runs), group_cells(runs)
    factor = curve_factor(cells)
    panels = _panels(cells, factor)
    values = list(dict.fromkeys(c.settings[factor] for c in cells)) if factor else [None]
    colours = dict(zip(values, ramp(len(values)), strict=True))
    figure = new_figure(1 + 3.4 * len(panels), 3.0)
    with mpl.rc_context(RC):
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (title, members) in zip(axes, panels, strict=True):
            for cell in members:
                value = cell.settings[factor] if factor else None
                style = {
                    "color": colours[value],
                    "linestyle": LINES[values.index(value) % len(LINES)],
                }
                name = label(factor, value) if factor else cell_label(cell)
                _draw_cell(ax, table, cell, name, style)
            ax.set_title(title)
            ax.set_xlabel("step")
            ax.axhline(table["chance"].iloc[0], color="0.6", linewidth=0.7, zorder=0)
        first = table.iloc[0]
        axes[0].set_ylabel(f"held-out kNN accuracy\n(k={int(first['k'])}, n={int(first['n']):,})")
        axes[0].annotate(
            "chance",
            (0, first["chance"]),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=7,
            color="0.4",
        )
        axes[-1].legend(loc="lower right")
    return figure


def _panels(cells: list[Cell], factor: str | None) -> list[tuple[str, list[Cell]]]:
    titled = sorted(((cell_label(c, without=factor), i) for i, c in enumerate(cells)))
    order = {title: i for title, i in reversed(titled)}
    titled.sort(key=lambda item: (order[item[0]], item[1]))
    return [(t, [cells[i] for _, i in group]) for t, group in groupby(titled, key=lambda x: x[0])]


def _draw_cell(ax: Axes, table: pd.DataFrame, cell: Cell, name: str, style: dict[str, Any]) -> None:
    width = 1.3 if len(cell.runs) == 1 else 0.7
    for number, run in enumerate(cell.runs):
        rows = table[table["run"] == run.name]
        ax.plot(
            rows["step"],
            rows["value"],
            linewidth=width,
            label=name if not number else None,
            **style,
        )
        for _, dip in rows[rows["dip"] > 0].groupby("dip"):
            ax.fill_between(
                dip["step"],
                dip["value"],
                dip["ceiling"],
                color=style["color"],
                alpha=0.25,
                linewidth=0,
            )
