"""Draw the figure `signals`: everything that a run recorded over its steps."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stabkit.analyze.cells import group_cells, run_label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots.clock import CLOCK, mark_clock, warmup_and_epoch, warmup_handles
from stabkit.analyze.plots.layer_styles import Styles, say_nothing
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.signal_rows import ACCURACY, HEAD, MEASURED, signal_rows
from stabkit.analyze.plots.signal_styles import LAYERS, RUN, plain_ticks, signal_scale, style_of
from stabkit.analyze.plots.style import RC, align_names, new_figure, ramp
from stabkit.analyze.summary import run_table
from stabkit.analyze.verdict import worst_first

MAX_RUNS = 3  # side by side; a page has no more room
COLUMNS = 4  # panels in a row if there is one run
EXTREME: dict[str, Any] = {"linewidth": 0.5, "linestyle": ":"}
SHADED = {"dip": "accuracy in a dip", "loss event": "loss spike or departure"}
FLAT = 0.2  # share of the height of a panel; a flatter curve shows nothing
GUIDE: dict[str, Any] = {"color": "0.45", "linewidth": 0.8, "linestyle": "--"}


def signals_table(runs: Diagnoses) -> pd.DataFrame:
    """Return what is drawn: all runs if there are at most three, else the three that fared worst.

    `of` counts all runs. Rows of the kinds `MEASURED` are a signal in one of at most 300 stretches
    of steps, from step to end: the median of its finite values and the extreme. The
    extreme is the largest value of all, or the smallest if a small value is what alarms, as for an
    entropy; it is inf if a value was not finite. Rows of kind `dip` and `loss event` (a spike of a
    loss, or its departure) go from step to end. Rows of kind `ceiling` are what `adam_rms` cannot
    exceed, 1/sqrt(1-beta2), from step on. Signals that are always 0 are left out.
    """
    labelled = [(run_label(cell, run), run) for cell in group_cells(runs) for run in cell.runs]
    if len({label for label, _ in labelled}) < len(labelled):
        labelled = [(run.name, run) for _, run in labelled]
    if len(labelled) > MAX_RUNS:
        worst = list(worst_first(run_table(runs))["run"][:MAX_RUNS])
        labelled = [(label, run) for label, run in labelled if run.name in worst]
    frames = [
        signal_rows(run).assign(run=label, **warmup_and_epoch(run)) for label, run in labelled
    ]
    table = pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)
    measured = table[table["kind"].isin(MEASURED)]
    told = measured.loc[(measured[["median", "extreme"]].fillna(0) != 0).any(axis=1), "signal"]
    table = table[table["kind"].isin(SHADED) | table["signal"].isin(told)]
    if told.empty:
        return pd.DataFrame(columns=[*HEAD, *CLOCK])
    return table.assign(of=len(runs))[[*HEAD, *CLOCK]].reset_index(drop=True)


def draw_signals(
    frame: pd.DataFrame, ax: Axes, styles: Styles | None = None, scale: str | None = None
) -> Axes:
    """Draw one signal of one run: a line per layer, the first darkest; shade dips, dash guides.

    `frame`: rows of `signals_table` for one run and one signal, and the dips of the run. `styles`
    by layer. `scale` of the vertical axis (`signal_scale`). Dotted lines are the extremes of
    stretches of steps. A cross on top is a value that is not finite.
    """
    rows = frame[frame["kind"].isin(MEASURED)]
    styles = _styles(rows) if styles is None else styles
    shows(ax, rows)
    for layer, series in rows.groupby("layer", sort=False, dropna=False):
        style = styles.get(str(layer), {"color": "black", "linewidth": 0.9, "zorder": 3})
        _draw_line(ax, series, style)
    for dip in frame[frame["kind"].isin(SHADED)].to_dict("records"):
        if dip["end"] > dip["step"]:
            ax.axvspan(dip["step"], dip["end"], color="0.88", linewidth=0.8, zorder=-1)
        else:
            ax.axvline(dip["step"], color="0.6", linewidth=1.2, zorder=-1)
    if (guide := style_of(rows).guide) is not None:
        ax.axhline(guide, zorder=3.5, **GUIDE)
    for ceiling in frame[frame["kind"] == "ceiling"].to_dict("records"):
        ax.hlines(ceiling["median"], ceiling["step"], ceiling["end"], zorder=3.5, **GUIDE)
    if not np.isfinite(rows["median"]).any():
        say_nothing(ax, "no finite value")
        return ax
    match scale or signal_scale(rows):
        case "log" if not (rows["median"] > 0).any():  # but another run has some
            say_nothing(ax, "no value above 0")
            return ax
        case "log":
            ax.set_yscale("log", nonpositive="mask")
        case "symlog":
            ax.set_yscale("symlog", linthresh=1)
            if (rows[["median", "extreme"]].min() >= 0).all():
                ax.set_ylim(bottom=-0.2)  # the margin below 0 would be decades wide
    plain_ticks(ax, _in_percent(rows))
    return ax


def _draw_line(ax: Axes, series: pd.DataFrame, style: dict[str, Any]) -> None:
    """Draw the medians, dotted lines for extremes that differ from them, and crosses."""
    ax.plot(series["step"], series["median"], **style)
    finite = np.isfinite(series["extreme"])
    if (series["extreme"] != series["median"])[finite].any():
        ax.plot(
            series["step"], series["extreme"].where(finite),
            **style | EXTREME,
        )  # fmt: skip
    bad = series.loc[~finite, "step"]
    if len(bad):
        ax.plot(
            bad, np.ones(len(bad)), "x", color=style["color"], markersize=4, clip_on=False,
            transform=ax.get_xaxis_transform(), zorder=4,
        )  # fmt: skip


def signals_figure(table: pd.DataFrame) -> Figure:
    """Draw one run in rows of four panels; several runs as columns, a row a signal, one scale."""
    table = table.assign(run=table["run"].astype(str))  # a run named 1 is a number in the CSV
    measured = table[table["kind"].isin(MEASURED)]
    runs, signals = list(table["run"].unique()), list(measured["signal"].unique())
    alone = len(runs) == 1
    columns = min(COLUMNS, len(signals)) if alone else len(runs)
    rows = -(-len(signals) // columns) if alone else len(signals)
    with mpl.rc_context(RC):
        figure = new_figure(0.8 + (2.1 if alone else 2.6) * columns, 0.9 + 1.3 * rows)
        axes = figure.subplots(rows, columns, squeeze=False)
        for number, signal in enumerate(signals):
            row = [axes.ravel()[number]] if alone else list(axes[number])
            _draw_row(row, table, runs, signal)
            if alone:
                row[0].set_title(signal, pad=6)
            else:
                row[0].set_ylabel(signal.replace("_", "_\n", 1) if len(signal) > 14 else signal)
        for ax in axes.ravel()[len(signals) if alone else axes.size :]:
            ax.axis("off")
        for run, ax in zip(runs, axes[0], strict=not alone):
            if not alone:
                ax.set_title(wrapped(run), pad=6)
        for number, column in enumerate(axes.T):
            used = [ax for ax in column if ax.axison]
            for ax in used[:-1]:
                ax.tick_params(labelbottom=False)
            used[-1].set_xlabel("step")
            own = table[table["run"] == runs[0 if alone else number]]
            for ax in used[:-1]:
                mark_clock(ax, own.assign(per_epoch=np.nan), named=False)
            mark_clock(used[-1], own, named=False)
        align_names(axes.ravel())
        total = int(table["of"].iloc[0])
        if alone:
            figure.suptitle(wrapped(runs[0], 80), fontsize=10)
        elif total > len(runs):
            figure.suptitle(f"the {len(runs)} of {total} runs that fared worst", fontsize=9)
        handles = _handles(table)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, columns + 1))
    return figure


def _draw_row(row: Sequence[Axes], table: pd.DataFrame, runs: list[str], signal: str) -> None:
    """Draw the panels of one signal, on one vertical scale if that leaves a curve to see."""
    of_signal = table[table["signal"] == signal]
    scale = signal_scale(of_signal[of_signal["kind"] != "ceiling"])
    drawn = []
    for run, ax in zip(runs, row, strict=True):
        whole = table[table["run"] == run]
        steps = whole.loc[~whole["kind"].isin(SHADED), ["step", "end"]]
        here = whole[(whole["signal"] == signal) | whole["kind"].isin(SHADED)]
        if not here["kind"].isin(MEASURED).any():
            say_nothing(ax, "not recorded")
        else:
            drawn.append(draw_signals(here, ax, _styles(whole), scale))
        ax.set_xlim(steps["step"].min(), max(steps["end"].max(), steps["step"].min() + 1))
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    drawn = [ax for ax in drawn if ax.get_yticks().size]
    if not drawn:
        return
    lows, highs = zip(*(ax.get_ylim() for ax in drawn), strict=True)
    widest = max(high - low for low, high in zip(lows, highs, strict=True))
    if scale == "linear" and widest < FLAT * (max(highs) - min(lows)):
        return  # too far apart for one scale, such as the losses of two methods
    for ax in drawn:
        ax.set_ylim(min(lows), max(highs))
        plain_ticks(ax, _in_percent(of_signal))


def _in_percent(rows: pd.DataFrame) -> bool:
    return bool((rows["kind"] == ACCURACY).any())


def _styles(rows: pd.DataFrame) -> Styles:
    """Order layers by depth, dark to light; the first and the last are heavy, the last dashed."""
    layers = rows.dropna(subset="depth").sort_values("depth")["layer"].astype(str).unique()
    last = len(layers) - 1
    return {
        layer: {
            "color": color,
            "linewidth": 1.1 if i in (0, last) else 0.6,
            "linestyle": (0, (3, 1)) if 0 < i == last else "-",
            "zorder": 3 - i / len(layers),
        }
        for i, (layer, color) in enumerate(zip(layers, ramp(len(layers)), strict=True))
    }


def _handles(table: pd.DataFrame) -> list[Line2D]:
    styles = [_styles(rows) for _, rows in table.groupby("run", sort=False)]
    handles = []
    for end, words in ((0, "first layer"), (-1, "last layer")):
        ends = [list(of_run.items())[end] for of_run in styles if of_run]
        names = " or ".join(dict.fromkeys(name for name, _ in ends))
        handles += [Line2D([], [], label=f"{words}: {names}", **style) for _, style in ends[:1]]
    longest = max(styles, key=len)
    if len(longest) > 2:
        between = list(longest.values())[len(longest) // 2]
        handles.insert(1, Line2D([], [], label="between: by depth", **between))
    measured = table[table["kind"].isin(MEASURED)]
    if (measured["median"] != measured["extreme"])[np.isfinite(measured["extreme"])].any():
        words = "extreme of a stretch of steps"
        handles.append(Line2D([], [], color="black", label=words, **EXTREME))
    shaded = [words for kind, words in SHADED.items() if (table["kind"] == kind).any()]
    if shaded:
        handles.append(Line2D([], [], color="0.88", linewidth=6, label=" or ".join(shaded)))
    guided = [name for name, style in (LAYERS | RUN).items() if style.guide is not None]
    if measured["signal"].isin(guided).any():
        handles.append(Line2D([], [], label="limit or guide", **GUIDE))
    if np.isinf(measured["extreme"]).any():
        handles.append(Line2D([], [], color="black", linestyle="", marker="x", markersize=4))
        handles[-1].set_label("not finite")
    return [*handles, *warmup_handles(table)]
