"""Draw the lines of the figure `knn`: curves, dips and chance, all in percent."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from stabkit.analyze.plots.note_lines import HALO

Styles = dict[str, dict[str, Any]]
NEAR = 4  # points of accuracy between labels that would overlap
SAID = 3  # dips of one panel whose depth is written beside them


def draw_curve(ax: Axes, rows: pd.DataFrame, style: dict[str, Any]) -> None:
    """Draw one line a seed, thin if there are several; shade dips that recovered.

    A circle marks a single evaluation that is far too low.
    """
    width = 1.3 if rows["run"].nunique() == 1 else 0.7
    for _, run in rows.groupby("run"):
        ax.plot(run["step"], 100 * run["value"], linewidth=width, **style)
        low = run[run["outlier"].astype(bool)]
        if len(low):
            ax.plot(
                low["step"], 100 * low["value"], "o", color=style["color"], markersize=6,
                fillstyle="none",
            )  # fmt: skip
        for _, dip in run[run["dip"] > 0].groupby("dip"):
            if not dip["recovered"].all():
                continue  # a band to the end of the run would look like an interval
            below = dip["value"] < dip["ceiling"]
            ax.fill_between(
                dip["step"], 100 * dip["value"], 100 * dip["ceiling"], where=below,
                interpolate=True, color=style["color"], alpha=0.3, linewidth=0,
            )  # fmt: skip


def say_dips(ax: Axes, drawn: pd.DataFrame, styles: Styles) -> None:
    """Mark where each dip began, and say of the deepest, above the mark, how deep they were."""
    inside = drawn[drawn["dip"] > 0]
    if inside.empty:
        return
    dips = inside.groupby(["run", "dip"], sort=False).agg(
        curve=("curve", "first"), step=("step", "min"), ceiling=("ceiling", "first"),
        lowest=("value", "min"), recovered=("recovered", "all"),
    )  # fmt: skip
    dips["depth"] = dips["ceiling"] - dips["lowest"]
    start, span = drawn["step"].min(), max(1, drawn["step"].max() - drawn["step"].min())
    said: list[tuple[float, float]] = []
    for number, dip in enumerate(dips.sort_values("depth", ascending=False).to_dict("records")):
        color = styles[str(dip["curve"])]["color"]
        at = (dip["step"], 100 * dip["ceiling"])
        ax.plot(*at, "v", color=color, markersize=5, markeredgecolor="black", markeredgewidth=0.4)
        if number < SAID:
            text = f"-{100 * dip['depth']:.1f} pt"
            text += "" if dip["recovered"] else ", not recovered"
            share = (at[0] - start) / span  # of the panel; a label stays inside
            wide = 0.32 if dip["recovered"] else 0.6
            near = sum(abs(x - share) < wide and abs(y - at[1]) < NEAR for x, y in said)
            said.append((share, at[1]))
            side = "left" if share < wide / 2 else "right" if share > 1 - wide / 2 else "center"
            label = ax.annotate(
                text, at, xytext=(0, 4 + 8 * near), textcoords="offset points", ha=side,
                fontsize=6.5, color="0.15", path_effects=HALO, zorder=4,
            )  # fmt: skip
            label.set_in_layout(False)  # the axes keep their width


def draw_chance(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the accuracy of guessing as a line, if it is known."""
    chance = 100 * table["chance"].iloc[0]
    if math.isnan(chance):
        return
    ax.axhline(chance, color="0.6", linewidth=0.7, zorder=0)
    ax.annotate(
        "chance", (table["step"].max(), chance), xytext=(0, 2), textcoords="offset points",
        ha="right", fontsize=7, color="0.4",
    )  # fmt: skip
