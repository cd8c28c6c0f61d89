"""Draw the figure `optimizer`: curves and final levels by optimizer and learning rate."""

import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stabkit.analyze.cells import group_cells, label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.learning_rate import rate_setting
from stabkit.analyze.plots.clock import mark_clock, warmup_and_epoch
from stabkit.analyze.plots.many import (
    PANELS,
    ROWS,
    evenly,
    say_left_out,
    seeds_drawn,
    without_unfinished,
)
from stabkit.analyze.plots.style import (
    LINES,
    RC,
    new_figure,
    ramp,
    rate_ticks,
    run_look,
    side_by_side,
    unstable_handle,
)
from stabkit.analyze.scores import score
from stabkit.analyze.verdict import UNSTABLE

NAME = "optim.name"
COLUMNS = 3  # panels in a row


def optimizer_table(runs: Diagnoses) -> pd.DataFrame:
    """Return rows of two kinds, which `row` tells apart; accuracies are in points.

    `curve`: optimizer, lr, warmup and per_epoch (`warmup_and_epoch`), step, mean, lowest, highest
    (over the seeds of a cell). `run`: optimizer, lr, seed, level, unstable. `optimizer` is its name
    and every other setting that varies.

    `unfinished` counts the runs that are left out because they have not ended.

    Raises DoesNotApplyError for runs whose configuration names no optimizer, and for runs of a
    single one.
    """
    names = {run.settings.get(NAME) for run in runs}
    if len(names) == 1 and names != {None}:
        raise DoesNotApplyError(
            f"{runs.path}: all runs use the optimizer {names.pop()}; the figure compares several "
            "(`--plot knn` shows the curves of one)"
        )
    ended, others = runs.that_finished()
    frames = []
    for cell in group_cells(ended):
        first = cell.runs[0].settings
        rate = rate_setting(first)
        rest = [key for key in cell.settings if key not in (NAME, rate)]
        arm = ", ".join([str(first.get(NAME)), *(label(key, cell.settings[key]) for key in rest)])
        each = [run.accuracy.evals[["step", "value"]] for run in cell.runs]
        if not sum(map(len, each)):
            continue
        if lacking := [key for key in (NAME, rate) if key not in first]:
            raise DoesNotApplyError(
                f"{cell.runs[0].path}: its configuration has no {' and no '.join(lacking)}; give a "
                'Monitor both: config={"optim": {"name": "adam", "lr": 0.001}}'
            )
        finite = pd.concat(each).replace([math.inf, -math.inf], math.nan)
        values = finite.groupby("step")["value"]
        curve = (
            pd.DataFrame({"mean": values.mean(), "lowest": values.min(), "highest": values.max()})
            .mul(100)
            .reset_index()
        )
        head = {"optimizer": arm, "lr": first[rate], **warmup_and_epoch(cell.runs[0])}
        ends = pd.DataFrame([_end(run) for run in cell.runs])
        frames += [curve.assign(row="curve", **head), ends.assign(row="run", **head)]
    if not frames:
        return pd.DataFrame()
    return pd.concat(frames, ignore_index=True).assign(unfinished=others)


def _end(run: Diagnosis) -> dict[str, Any]:
    found = score(run)
    unstable = found["verdict"] in UNSTABLE
    return {"seed": run.settings.get("seed"), "level": found["level"], "unstable": unstable}


def optimizer_figure(table: pd.DataFrame) -> Figure:
    """Draw a panel of curves for each optimizer, and one of final levels by learning rate."""
    every = list(dict.fromkeys(table["optimizer"]))
    if len(every) >= PANELS:
        table = table[table["optimizer"].isin(_lowest(table))]
    arms = list(dict.fromkeys(table["optimizer"]))
    columns = side_by_side(len(arms) + 1, COLUMNS)
    lines = -(-(len(arms) + 1) // columns)
    colors = _rates(table)
    with mpl.rc_context(RC):
        figure = new_figure(1.6 + 2.9 * columns, 0.6 + 2.8 * lines)
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        low, high = table["lowest"].min(), table["highest"].max()
        curves = {rate: colors[rate] for rate in evenly(list(colors), ROWS)}
        for ax, arm in zip(axes, arms, strict=False):
            draw_optimizer(table[table["optimizer"] == arm], ax, curves)
            margin = max(0.05 * (high - low), 1.0)
            ax.set_ylim(low - margin, high + margin)
            ax.set_title(wrapped(arm))
        draw_levels_by_rate(table, axes[len(arms)])
        for i, ax in enumerate(axes[: len(arms)]):
            if i % columns:
                ax.set_ylabel("")
            if i + columns <= len(arms):
                ax.set_xlabel("")
        for ax in axes[len(arms) + 1 :]:
            ax.axis("off")
        handles = [
            Line2D([], [], label=f"base lr {rate:g}", linewidth=1.3, **style)
            for rate, style in curves.items()
        ]
        handles += [
            Line2D([], [], label=wrapped(arm), marker=mark, markersize=4, **_mean_style(i))
            for i, (arm, mark) in enumerate(_marks(table).items())
        ]
        handles.append(unstable_handle())
        figure.legend(handles=handles, loc="outside right center")
        ends = table[table["row"] == "run"]
        say_left_out(
            figure,
            seeds_drawn(ends.groupby(["optimizer", "lr"]).size(), ends["seed"])
            + ", shaded over their range",
            f"the {len(arms)} of {len(every):,} arms that end lowest" if arms != every else "",
            f"curves of {len(curves)} of {len(colors):,} rates" if curves != colors else "",
            without_unfinished(table),
        )
    return figure


def _lowest(table: pd.DataFrame) -> list[Any]:
    """Return the arms whose mean final level is the lowest, as many as there is room for."""
    levels = table[table["row"] == "run"].groupby("optimizer", sort=False)["level"].mean()
    return list(levels.nsmallest(PANELS - 1).index)


def draw_optimizer(
    table: pd.DataFrame, ax: Axes, colors: dict[float, dict[str, Any]] | None = None
) -> Axes:
    """Draw accuracy over steps, a curve a rate: mean of the seeds, shaded over their range."""
    for rate, style in (colors or _rates(table)).items():
        rows = table[(table["row"] == "curve") & (table["lr"] == rate)]
        if rows.empty:
            continue
        ax.plot(rows["step"], rows["mean"], linewidth=1.2, **style)
        ax.fill_between(
            rows["step"], rows["lowest"], rows["highest"], color=style["color"], alpha=0.2,
            linewidth=0,
        )  # fmt: skip
    mark_clock(ax, table[table["row"] == "curve"])
    ax.set(xlabel="step", ylabel="held-out kNN accuracy, %")
    return ax


def draw_levels_by_rate(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the final level over the rate: a line through the means, a mark per run."""
    ends = table[table["row"] == "run"]
    colors, marks = _rates(table), _marks(table)
    apart = 1.02  # shifts the marks of the optimizers, so that none hides another
    for i, (arm, mark) in enumerate(marks.items()):
        rows = ends[ends["optimizer"] == arm]
        means = rows.groupby("lr")["level"].mean()
        ax.plot(means.index, means, zorder=1, **_mean_style(i))
        for run in rows.to_dict("records"):
            bad, color = run["unstable"] in (True, "True", 1.0), colors[run["lr"]]["color"]
            at = run["lr"] * apart ** (i - (len(marks) - 1) / 2)
            ax.plot(
                at, run["level"], mark, markersize=5 if bad else 4, **run_look(color, bad)
            )  # fmt: skip
    rates = sorted(ends["lr"].unique())
    ax.set(xlabel="base lr", ylabel="final accuracy, %", title="final level")
    rate_ticks(ax, rates, most=5)
    return ax


def _rates(table: pd.DataFrame) -> dict[float, dict[str, Any]]:
    rates = sorted(table["lr"].unique())
    return {
        rate: {"color": color, "linestyle": LINES[i % len(LINES)]}
        for i, (rate, color) in enumerate(zip(rates, ramp(len(rates)), strict=True))
    }


def _mean_style(arm: int) -> dict[str, Any]:
    """Return the line through the means of an arm. Gray, as rates have the colors."""
    return {"color": "0.5", "linestyle": LINES[arm % len(LINES)], "linewidth": 0.9}


def _marks(table: pd.DataFrame) -> dict[str, str]:
    arms = dict.fromkeys(table["optimizer"])
    return {arm: "osD^vPp*h<>"[i % 11] for i, arm in enumerate(arms)}
