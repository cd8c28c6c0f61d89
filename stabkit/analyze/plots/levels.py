"""Draw where the runs of every arm of a study end, next to what a paper reports."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.plots.style import RC, new_figure, ramp
from stabkit.analyze.study import arms_in_order

# what happened to a run, and its marker
MARKERS = {"no dip": "o", "dips": "v", "collapsed": "X"}


def draw_levels(table: pd.DataFrame, paper: pd.Series) -> Figure:
    """Draw one row per arm: a marker per run, a bar at the mean; on the right, published values.

    `table` is that of `levels`, `paper` that of `published`. Their scales differ on purpose, since
    data and measure differ too. If the paper has these arms, both sides share their rows, in its
    order.
    """
    told, arms = list(paper.index), arms_in_order(table, paper)
    shared = set(told) <= set(arms)
    with mpl.rc_context(RC):
        rows = max(len(arms), len(paper))
        names = [arms] if paper.empty else [arms, arms if shared else told]
        longest = [max(map(len, labels)) for labels in names]
        widths = [2.2 + 0.065 * n * (i == 0 or not shared) for i, n in enumerate(longest)]  # inches
        figure = new_figure(sum(widths), 1.1 + 0.28 * rows)
        axes = figure.subplots(1, len(names), squeeze=False, width_ratios=widths)[0]
        _draw_arms(axes[0], table, arms)
        if not paper.empty:
            axes[1].plot(paper, range(len(paper)), "s", color="black", markersize=5)
            _name(axes[1], names[1], str(paper.name), "published")
            axes[1].tick_params(labelleft=not shared)
        figure.legend(
            handles=[
                Line2D([], [], marker=m, linestyle="", color="0.3", markersize=5, label=name)
                for name, m in MARKERS.items()
            ],
            loc="outside lower left",
            ncols=3,
        )
    return figure


def _draw_arms(ax: Axes, table: pd.DataFrame, arms: list[str]) -> None:
    (color,) = ramp(1)
    for row, name in enumerate(arms):
        runs = table[table["arm"] == name]
        ax.plot([runs["level"].mean()] * 2, [row - 0.3, row + 0.3], color="0.5", linewidth=1)
        for run in runs.to_dict("records"):
            fate = "collapsed" if run["collapsed"] else "dips" if run["dips"] else "no dip"
            ax.plot(run["level"], row, MARKERS[fate], color=color, markersize=5, alpha=0.8)
    _name(ax, arms, "held-out accuracy, %", "here")


def _name(ax: Axes, rows: list[str], measure: str, title: str) -> None:
    ax.set(xlabel=measure, title=title, ylim=(len(rows) - 0.4, -0.6))
    ax.set_yticks(range(len(rows)), labels=rows)
    ax.grid(axis="y", linewidth=0.4, color="0.85")
    ax.margins(x=0.08)
