"""Draw a study of branches: `branches` and `committor`, each with its table."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabkit.analyze.csv_file import write_csv
from stabkit.analyze.plots.style import RC, as_written, new_figure, ramp
from stabkit.branch.judge.attribution import Attribution
from stabkit.branch.judge.branch_table import Planned, has_ended
from stabkit.branch.judge.committor import CERTAIN, commit_words
from stabkit.branch.judge.measured import after_parent, level_before
from stabkit.printing import counted
from stabkit.rundir import whole

COLUMNS = 3  # panels in a row


def curve_table(plan: Planned) -> pd.DataFrame:
    """Return one row an evaluation: branch, kind, change, begin, step, since (the onset), value.

    The parent's evaluations before a branch began come first in each branch. `value` is in points.
    """
    parts = []
    for one in plan.branches:
        if not has_ended(plan.study / one["folder"]):
            continue
        run = plan.branch(one["folder"])
        seen = after_parent(run, plan.parent, plan.metric, one["begin"], plan.horizon)
        since = seen.evals["step"] - plan.event.onset
        head = {"branch": one["folder"], **{key: one[key] for key in ("kind", "change", "begin")}}
        part = pd.DataFrame({"step": seen.evals["step"], "since": since})
        parts.append(part.assign(value=100 * seen.evals["value"], **head))
    columns = ["branch", "kind", "change", "begin", "step", "since", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


@mpl.rc_context(RC)
def branches_figure(curves: pd.DataFrame, plan: Planned, judged: Attribution) -> Figure:
    """Draw a panel for each intervention, over the placebos' range and the control."""
    tried = [str(row.change) for row in judged.interventions.itertuples()]
    verdicts = dict(zip(tried, judged.interventions.get("verdict", []), strict=True))
    rows = -(-max(1, len(tried)) // COLUMNS)
    wide = min(COLUMNS, max(1, len(tried)))
    figure = new_figure(1 + 2.6 * wide, 0.8 + 2.2 * rows)
    axes = figure.subplots(rows, wide, sharex=True, sharey=True, squeeze=False).ravel()
    begin = judged.interventions["begin"].iloc[0] if tried else curves["begin"].max()
    here = curves[curves["begin"] == begin]
    every = plan.event.onset - begin
    here = here[here["since"] >= -3 * max(every, 1)]
    level = level_before(plan.parent, plan.metric, plan.event.onset)
    for ax, change in zip(axes, tried or [""], strict=False):
        _placebos(ax, here)
        for _, branch in here[here["change"] == change].groupby("branch") if change else ():
            ax.plot(branch["since"], branch["value"], color=ramp(2)[1], linewidth=0.8)
        ax.plot([], [], color=ramp(2)[1], linewidth=0.8, label="intervention")
        ax.axhline(level, color="0.6", linewidth=0.6, linestyle=":")
        ax.axvline(begin - plan.event.onset, color="0.4", linewidth=0.8, linestyle="--")
        ax.set_title(f"{change}\n{verdicts.get(change, '')}".strip(), fontsize=8, wrap=True)
    for ax in axes[max(1, len(tried)) :]:
        ax.set_axis_off()
    axes[0].legend(fontsize=7)
    figure.supxlabel("steps since the onset of the event; dashed: where the branches begin")
    figure.supylabel("accuracy (%)")
    return figure


def _placebos(ax: Axes, here: pd.DataFrame) -> None:
    values = here[here["kind"] == "placebo"].pivot_table("value", "since", "branch")
    if len(values.columns):
        ax.fill_between(
            values.index, values.min(axis=1), values.max(axis=1), color="0.85",
            label=counted(len(values.columns), "placebo"),
        )  # fmt: skip
    for _, branch in here[here["kind"] == "control"].groupby("branch"):
        ax.plot(
            branch["since"],
            branch["value"],
            color="black",
            linewidth=1.2,
            zorder=3,
            label="control",
        )


@mpl.rc_context(RC)
def committor_figure(judged: Attribution, plan: Planned) -> Figure:
    """Draw the share of placebos that repeat the event by begin step, with exact intervals."""
    shares = judged.committor
    figure = new_figure(4.5, 3)
    ax = figure.subplots()
    color = ramp(2)[0]
    ax.fill_between(shares["begin"], shares["low"], shares["high"], color="0.85", label="95 %")
    below, above = shares["share"] - shares["low"], shares["high"] - shares["share"]
    ax.errorbar(shares["begin"], shares["share"], [below, above], color=color, marker="o",
                markersize=4, capsize=2, linewidth=1)  # fmt: skip
    ax.axhline(CERTAIN, color="0.4", linewidth=0.8, linestyle=":")
    ax.axvline(plan.event.onset, color="0.4", linewidth=0.8, linestyle="--", label="onset")
    if (step := judged.commit_step) is not None:
        ax.axvline(step, color=ramp(2)[1], linewidth=1, label=f"committed at {step} or before")
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("step at which the placebos begin")
    ax.set_ylabel("share that repeats the event")
    if len(shares):
        ax.set_title(commit_words(shares), fontsize=8, wrap=True)
    ax.legend(loc="best")
    return figure


def write_study(plan: Planned, table: pd.DataFrame, judged: Attribution) -> list[Path]:
    """Write both figures and all tables into the study; return the files.

    table: rows of `measured_table`.
    """
    folder = plan.study / "figures"
    folder.mkdir(exist_ok=True)
    curves = curve_table(plan)
    tables = {
        "branches": curves,
        "committor": judged.committor,
        "branch_table": table,
        "interventions": judged.interventions,
    }
    drawn = {"branches": branches_figure(curves, plan, judged)} if len(curves) else {}
    if len(judged.committor):
        drawn["committor"] = committor_figure(judged, plan)
    files = []
    for name, figure in drawn.items():
        with mpl.rc_context(RC), whole(folder / f"{name}.png", durable=False) as out:
            as_written(figure).savefig(out, format="png")
        files.append(folder / f"{name}.png")
    for name, content in tables.items():
        write_csv(content, folder / f"{name}.csv")
        files.append(folder / f"{name}.csv")
    return files
