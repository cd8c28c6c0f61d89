"""Draw the lines of the figure `knn`: curves, dips and chance, all in percent."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from stabkit.analyze.plots.free_places import MOVABLE
from stabkit.analyze.plots.note_lines import HALO

Styles = dict[str, dict[str, Any]]
SAID = 3  # dips of one panel whose depth is written beside them


def draw_curve(ax: Axes, rows: pd.DataFrame, style: dict[str, Any]) -> None:
    """Draw one line per seed, thin if there are several; shade dips that recovered.

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
    """Mark where each dip began, and say of the deepest how deep they were (`place_labels`)."""
    inside = drawn[drawn["dip"] > 0]
    if inside.empty:
        return
    dips = inside.groupby(["run", "dip"], sort=False).agg(
        curve=("curve", "first"), step=("step", "min"), ceiling=("ceiling", "first"),
        depth=("depth", "first"), recovered=("recovered", "all"),
    )  # fmt: skip
    for number, dip in enumerate(dips.sort_values("depth", ascending=False).to_dict("records")):
        color = styles[str(dip["curve"])]["color"]
        at = (dip["step"], 100 * dip["ceiling"])
        ax.plot(*at, "v", color=color, markersize=5, markeredgecolor="black", markeredgewidth=0.4)
        if number < SAID:
            label = ax.annotate(
                dip_words(100 * dip["depth"], dip["recovered"]), at, xytext=(0, 4),
                textcoords="offset points", ha="center", va="bottom", fontsize=6.5, color="0.15",
                path_effects=HALO, zorder=4, gid=MOVABLE,
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0},
            )  # fmt: skip
            label.set_in_layout(False)  # the axes keep their width


def dip_words(points: float, recovered: bool) -> str:
    """Say how deep a dip was, in points, and whether it lasted to the end of the run."""
    return f"-{points:.1f} pt" + ("" if recovered else ", not recovered")


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
