"""Draw the figure `lr-sensitivity`: final level against learning rate, one curve an arm."""

import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots.contrast import refuse_constant, scored, words
from stabkit.analyze.plots.many import ROWS, say_left_out, without_unfinished
from stabkit.analyze.plots.style import (
    LINES,
    RC,
    new_figure,
    ramp,
    rate_ticks,
    run_look,
    unstable_handle,
)
from stabkit.analyze.sensitivity import LR, lr_sensitivity
from stabkit.analyze.verdict import is_unstable


def lr_sensitivity_table(runs: Diagnoses) -> pd.DataFrame:
    """Return rows of three kinds, which `row` tells apart; levels are in points.

    `run`: arm, lr, seed, level, unstable. `mean`: arm, lr, level (over seeds). `arm`: arm,
    sensitivity, low, high, gained (see `lr_sensitivity`), untrained. `unfinished` counts
    the runs that are left out because they have not ended.

    An arm with one rate has no sensitivity. Raises ValueError if the rate varies in no arm.
    """
    frame, factors = scored(runs)
    if frame.empty:
        return frame
    refuse_constant(runs, LR, factors, "no sensitivity to it can be measured")
    rest = [key for key in factors if key != LR]
    frame = frame.assign(
        arm=[words(row, rest) for row in frame.to_dict("records")], unstable=is_unstable(frame)
    )
    several = frame.groupby("arm")[LR].transform("nunique") > 1
    if not several.any():
        raise ValueError(
            f"{runs.path}: no runs that share {', '.join(rest) or 'all else'} have levels at two "
            f"rates of {LR}"
        )
    shown = frame.rename(columns={LR: "lr"})
    each = shown[["arm", "lr", "seed", "level", "unstable"]].assign(row="run")
    means = shown.groupby(["arm", "lr"], sort=False)["level"].mean().reset_index()
    arms = lr_sensitivity(frame[several], ["arm"])
    arms = arms.assign(row="arm", untrained=frame["untrained"].mean())
    parts = [each, means.assign(row="mean"), arms]
    return pd.concat(parts, ignore_index=True).assign(unfinished=frame["unfinished"].max())


def lr_sensitivity_figure(table: pd.DataFrame) -> Figure:
    """Draw one panel; its legend gives the sensitivity of each arm. Very many arms are cut."""
    arms = table.loc[table["row"] == "mean", "arm"].nunique()
    if arms > ROWS:
        worst = table[table["row"] == "arm"].nlargest(ROWS, "sensitivity")["arm"]
        table = table[table["arm"].isin(worst)]
    styles = _styles(table)
    with mpl.rc_context(RC):
        names = [_named(table, arm, "\n" if len(styles) <= 8 else " ") for arm in styles]
        height = max(2.9, 1.0 + (0.36 if len(names) <= 8 else 0.2) * len(names))
        figure = new_figure(4.6 + 0.06 * max(max(map(len, n.split("\n"))) for n in names), height)
        draw_lr_sensitivity(table, figure.subplots())
        handles = [
            Line2D([], [], label=name, markersize=4, **style)
            for name, style in zip(names, styles.values(), strict=True)
        ]
        handles.append(unstable_handle())
        figure.legend(
            handles=handles, loc="outside right center",
            title="mean points lost over the rates\n(95 % from ten seeds on)\n"
            "of those that the best rate gains",
            title_fontsize=8,
        )  # fmt: skip
        fewer = f"the {len(styles)} of {arms:,} arms that lose most" if arms > len(styles) else ""
        say_left_out(figure, fewer, without_unfinished(table))
    return figure


def draw_lr_sensitivity(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the level over log lr: the mean of the seeds as a curve, each run as a mark."""
    for arm, style in _styles(table).items():
        rows = table[table["arm"] == arm]
        means = rows[rows["row"] == "mean"].sort_values("lr")
        ax.plot(means["lr"], means["level"], linewidth=1.2, **{**style, "marker": ""})
        for run in rows[rows["row"] == "run"].to_dict("records"):
            bad = run["unstable"] in (True, "True", 1.0)
            ax.plot(
                run["lr"], run["level"], style["marker"], markersize=5 if bad else 4,
                **run_look(style["color"], bad),
            )  # fmt: skip
    for untrained in table["untrained"].dropna().unique():
        ax.axhline(untrained, color="0.6", linewidth=0.7, zorder=0)
        ax.annotate(
            "untrained", (1, untrained), xycoords=ax.get_yaxis_transform(), xytext=(0, 2),
            textcoords="offset points", ha="right", fontsize=7, color="0.4",
        )  # fmt: skip
    rates = sorted(table["lr"].dropna().unique())
    ax.set(xlabel="base lr", ylabel="final held-out kNN accuracy, %")
    rate_ticks(ax, rates, most=7)
    return ax


def _styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    arms = table.loc[table["row"] == "mean", "arm"].unique()
    marks = "osD^vPp*h<>"
    return {
        arm: {"color": c, "linestyle": LINES[i % len(LINES)], "marker": marks[i % len(marks)]}
        for i, (arm, c) in enumerate(zip(arms, ramp(len(arms)), strict=True))
    }


def _named(table: pd.DataFrame, arm: str, then: str) -> str:
    found = table[(table["row"] == "arm") & (table["arm"] == arm)].to_dict("records")
    if not found:
        return f"{arm}: one rate"
    low, high = found[0]["low"], found[0]["high"]
    interval = "" if math.isnan(low) else f" ({low:.1f} to {high:.1f})"
    return f"{arm}:{then}{found[0]['sensitivity']:.1f}{interval} of {found[0]['gained']:.1f}"
