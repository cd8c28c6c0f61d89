"""Draw the figure `lr-sensitivity`: final level against learning rate, one curve per arm."""

import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.learning_rate import LR
from stabkit.analyze.plots.contrast import refuse_constant, scored, that_have, words
from stabkit.analyze.plots.line_ends import MOST, LineEnd, label_ends
from stabkit.analyze.plots.many import ROWS, joined_notes, say_left_out, without_unfinished
from stabkit.analyze.plots.style import (
    LINES,
    RC,
    new_figure,
    ramp,
    rate_ticks,
    run_look,
)
from stabkit.analyze.sensitivity import lr_sensitivity
from stabkit.analyze.text import shortened
from stabkit.analyze.verdict import is_unstable

YES = (True, "True", 1.0)  # from a frame, or from its CSV


def lr_sensitivity_table(runs: Diagnoses) -> pd.DataFrame:
    """Return rows of three kinds, which `row` tells apart; levels are in points.

    `run`: arm, lr, seed, level, unstable. `mean`: arm, lr, level (over seeds). `arm`: arm,
    sensitivity, low, high, gained (see `lr_sensitivity`), untrained. `unfinished` counts
    the runs that are left out because they have not ended.

    An arm with one rate has no sensitivity. A LeftOutWarning names the runs without a rate. Raises
    DoesNotApplyError if the rate varies in no arm.
    """
    frame, factors = scored(runs)
    if frame.empty:
        return frame
    refuse_constant(runs, LR, factors, "no sensitivity to it can be measured")
    frame = that_have(runs, frame, LR)
    rest = [key for key in factors if key != LR and frame[key].nunique(dropna=False) > 1]
    frame = frame.assign(
        arm=[words(row, rest) for row in frame.to_dict("records")], unstable=is_unstable(frame)
    )
    several = frame.groupby("arm")[LR].transform("nunique") > 1
    if not several.any():
        raise DoesNotApplyError(
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
    """Draw one panel, with the name of each arm and what its rates cost at the end of its line.

    From nine arms on the names are in a legend. Very many arms are cut.
    """
    arms = table.loc[table["row"] == "mean", "arm"].nunique()
    if arms > ROWS:
        worst = table[table["row"] == "arm"].nlargest(ROWS, "sensitivity")["arm"]
        table = table[table["arm"].isin(worst)]
    styles = _styles(table)
    with mpl.rc_context(RC):
        names = {arm: _named(table, arm) for arm in styles}
        few = len(names) <= MOST
        width = 4.8 if few else 4.6 + 0.06 * max(map(len, names.values()))
        figure = new_figure(width, max(2.9, 0.8 + 0.2 * len(names)))
        ax = draw_lr_sensitivity(table, figure.subplots())
        if few:
            label_ends(
                ax,
                [
                    LineEnd(_last(table, arm), names[arm], {**style, "markersize": 4})
                    for arm, style in styles.items()
                ],
            )
        else:
            handles = [
                Line2D([], [], label=names[arm], markersize=4, **style)
                for arm, style in styles.items()
            ]
            figure.legend(handles=handles, loc="outside right center")
        fewer = f"the {len(styles)} of {arms:,} arms that lose most" if arms > len(styles) else ""
        interval = " (95 % interval)" if table["low"].notna().any() else ""
        hollow = "hollow: an unstable run" if (table["unstable"].isin(YES)).any() else ""
        costs = f"costs: points below the best rate, mean over the rates{interval}"
        say_left_out(figure, costs, joined_notes(hollow, fewer, without_unfinished(table)))
    return figure


def draw_lr_sensitivity(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the level over log lr: the mean of the seeds as a curve, each run as a mark."""
    for arm, style in _styles(table).items():
        rows = table[table["arm"] == arm]
        means = rows[rows["row"] == "mean"].sort_values("lr")
        ax.plot(means["lr"], means["level"], linewidth=1.2, **{**style, "marker": ""})
        for run in rows[rows["row"] == "run"].to_dict("records"):
            bad = run["unstable"] in YES
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


def _named(table: pd.DataFrame, arm: str) -> str:
    found = table[(table["row"] == "arm") & (table["arm"] == arm)].to_dict("records")
    name = shortened(arm, 44) or "all runs"
    if not found:
        return f"{name}, one rate"
    low, high = found[0]["low"], found[0]["high"]
    interval = "" if math.isnan(low) else f" ({low:.1f} to {high:.1f})"
    return f"{name}, costs {found[0]['sensitivity']:.1f}{interval}"


def _last(table: pd.DataFrame, arm: str) -> float:
    """Return the mean level at the largest rate of an arm, where its line ends."""
    means = table[(table["row"] == "mean") & (table["arm"] == arm)]
    return float(means.loc[means["lr"].idxmax(), "level"])
