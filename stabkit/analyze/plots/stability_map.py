"""Draw the figure `stability-map`: two settings against each other, and where stability ends."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stabkit.analyze.cells import FROZEN, WORDS
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.learning_rate import LR
from stabkit.analyze.plots.contrast import scored, that_have, words
from stabkit.analyze.plots.many import PANELS, ROWS, TooManyError, say_left_out, without_unfinished
from stabkit.analyze.plots.style import RC, new_figure, side_by_side
from stabkit.analyze.sensitivity import stable_frontier
from stabkit.analyze.verdict import is_unstable

BATCH = "train.batch"
FREEZE = "model.freeze_patch_embed"
COLUMNS = 3  # panels in a row
COLORS = "viridis"
BORDER: dict[str, Any] = {"color": "crimson", "linewidth": 3}
FRAME: dict[str, Any] = {"fill": False, "linewidth": 0.8, "linestyle": "--"}


def stability_map_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row per cell of the map.

    Columns: panel (the other settings), x_name, x, y_name, y, level (mean, points), runs, known
    (runs with a verdict), unstable (how many of those), dips. The columns stable and first_unstable
    (the largest stable and the smallest unstable x of `stable_frontier`) belong to the whole row of
    the map. `unfinished` counts the runs that are left out because they have not ended.

    If learning rate and batch size both vary, x is the rate and y the batch size; else the settings
    with the most values are chosen. Stability has a limit only if x is one of these two. A
    LeftOutWarning names the runs that lack one of the two settings. Raises DoesNotApplyError if
    fewer than two settings vary, or no run has both.
    """
    frame, factors = scored(runs)
    if frame.empty:
        return frame
    if len(factors) < 2:
        told = f"they vary {factors[0]} alone" if factors else "no setting but the seed varies"
        raise DoesNotApplyError(
            f"{runs.path}: a map needs two settings that vary in these runs; {told}"
        )
    x, y = _axes(frame, factors)
    frame = that_have(runs, frame, x, y)
    rest = [key for key in factors if key not in (x, y)]
    panels = [words(row, rest, none="") for row in frame.to_dict("records")]
    frame = frame.assign(panel=panels, x_name=_name(x), y_name=_name(y), x=frame[x], y=frame[y])
    table = pd.DataFrame(
        [
            dict(zip(("panel", "x_name", "x", "y_name", "y"), key, strict=True))
            | {
                "level": rows["level"].mean(),
                "runs": len(rows),
                "known": int((rows["verdict"] != "unknown").sum()),
                "unstable": int(is_unstable(rows).sum()),
                "dips": int(rows["dips"].sum()),
            }
            for key, rows in frame.groupby(
                ["panel", "x_name", "x", "y_name", "y"], sort=False, dropna=False
            )
        ]
    )
    table["unfinished"] = frame["unfinished"].max()
    if x not in (LR, BATCH) or not _numeric(table["x"]):  # only of these is less known to be safer
        table = table.assign(stable=math.nan, first_unstable=math.nan)
    else:
        front = stable_frontier(frame, by=["panel", "y"], along="x").drop(columns="below")
        front = front.rename(columns={"unstable": "first_unstable"})
        table = table.merge(front, on=["panel", "y"], how="left")
    # the CSV must give the same figure: values that are no numbers are replaced by names
    for axis, key in (("x", x), ("y", y)):
        if not _numeric(table[axis]):
            table[axis] = [FROZEN.get(v, v) if key == FREEZE else _text(v) for v in table[axis]]
    return table


def _name(key: str) -> str:
    """Return the name of an axis. Frozen and learned need none."""
    return "" if key == FREEZE else WORDS.get(key, key.rsplit(".", 1)[-1].replace("_", " "))


def _axes(frame: pd.DataFrame, factors: Sequence[str]) -> tuple[str, str]:
    """Choose the axes: rate along x and batch size along y, then the settings with most values.

    Numbers go along x if only one of the two has numbers.
    """
    values = {key: frame[key].nunique() for key in factors}
    first = sorted(factors, key=lambda key: (key not in (LR, BATCH), -values[key]))[:2]
    one, two = sorted(first, key=lambda key: (key != LR, not _numeric(frame[key]), -values[key]))
    return one, two


def _numeric(values: "pd.Series[float]") -> bool:
    """Return whether all values are numbers; a setting that is null in some runs is NaN there."""
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return numbers and not values.isna().any()


def _text(value: object) -> str:
    return "none" if pd.isna(value) else _tick(value)


def stability_map_figure(table: pd.DataFrame) -> Figure:
    """Draw a panel for each combination of the other settings, on one color scale.

    If there are very many panels, only those with the most unstable runs are drawn. Raises
    TooManyError for an axis with very many values.
    """
    named = table["panel"].astype(object).fillna("")  # an empty name comes back from CSV as NaN
    every = panels = list(dict.fromkeys(named))
    if len(every) > PANELS:
        unstable = table["unstable"].groupby(named, sort=False).sum().nlargest(PANELS)
        panels = [panel for panel in every if panel in unstable.index]
        table, named = table[named.isin(panels)], named[named.isin(panels)]
    columns = side_by_side(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    num_x, num_y = table["x"].nunique(), table["y"].nunique()
    if max(num_x, num_y) > ROWS:
        raise TooManyError(f"a map of {num_x:,} by {num_y:,} values; there is room for {ROWS}")
    longest = max(len(_tick(value)) for value in table["y"])
    with mpl.rc_context(RC):
        figure = new_figure(
            1.4 + 0.06 * longest + columns * max(1.6, 0.75 * num_x),
            1.4 + rows * (0.6 + 0.55 * num_y),
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax, panel in zip(axes.ravel(), panels, strict=False):
            draw_stability_map(table[named == panel], ax, _scale(table), table)
            ax.set_title(panel if len(panel) < 30 else panel.replace(", ", "\n"))
        for ax in axes.ravel()[len(panels) :]:
            ax.axis("off")
        for ax in axes[:, 0]:
            ax.set_ylabel(_said(table["y_name"]))
        for ax in axes[-1]:
            ax.set_xlabel(_said(table["x_name"]))
        bar = figure.colorbar(ScalarMappable(_scale(table), COLORS), ax=axes, pad=0.02)
        bar.set_label("final accuracy, %")
        figure.legend(handles=_handles(table), loc="outside upper center")
        say_left_out(
            figure,
            "in a cell: mean level, unstable runs of all",
            f"{len(panels)} of {len(every)} panels: those with the most unstable runs"
            if len(panels) < len(every) else "",
            without_unfinished(table),
        )  # fmt: skip
    return figure


def draw_stability_map(
    table: pd.DataFrame,
    ax: Axes,
    scale: Normalize | None = None,
    whole: pd.DataFrame | None = None,
) -> Axes:
    """Draw one panel: color cells by level, frame those with an unstable run, and draw the limit.

    `scale` and `whole` (the table of all panels) let panels share colors and cells.
    """
    whole = table if whole is None else whole
    scale = scale or _scale(whole)
    xs, ys = (_ordered(whole[axis]) for axis in ("x", "y"))
    colors = mpl.colormaps[COLORS]
    for cell in table.to_dict("records"):
        i, j = xs.index(cell["x"]), ys.index(cell["y"])
        color = colors(scale(cell["level"]))
        ax.add_patch(
            mpl.patches.Rectangle((i - 0.48, j - 0.48), 0.96, 0.96, facecolor=color, linewidth=0)
        )
        bright = np.dot(color[:3], (0.2126, 0.7152, 0.0722)) > 0.5
        share = f"{cell['unstable']} of {cell['runs']}"
        note = share if cell["known"] == cell["runs"] else f"{share}, {cell['known']} known"
        text = f"{cell['level']:.1f}\n{note}"
        weight = "bold" if cell["unstable"] else "normal"
        ink = "black" if bright else "white"
        ax.text(i, j, text, ha="center", va="center", fontsize=7, color=ink, weight=weight)
        if cell["unstable"]:
            box = mpl.patches.Rectangle((i - 0.42, j - 0.42), 0.84, 0.84, edgecolor=ink, **FRAME)
            ax.add_patch(box)
    _draw_frontier(table, ax, xs, ys)
    ax.set(xlim=(-0.6, len(xs) - 0.4), ylim=(-0.6, len(ys) - 0.4))
    ax.set_xticks(range(len(xs)), labels=[textwrap.fill(_tick(x), 12) for x in xs])
    ax.set_yticks(range(len(ys)), labels=[_tick(y) for y in ys])
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return ax


def _draw_frontier(table: pd.DataFrame, ax: Axes, xs: list[object], ys: list[object]) -> None:
    """Draw a thick edge right of the largest stable x of each row; left of all if none is."""
    if not _has_border(table):
        return
    for y, rows in table.groupby("y", sort=False):
        row = rows.iloc[0]
        at = xs.index(row["stable"]) + 0.5 if row["stable"] in xs else -0.5
        j = ys.index(y)
        ax.plot([at, at], [j - 0.5, j + 0.5], zorder=3, **BORDER)


def _has_border(table: pd.DataFrame) -> bool:
    return bool(table[["stable", "first_unstable"]].notna().any(axis=None))


def _handles(table: pd.DataFrame) -> list[Line2D | Patch]:
    """Return the legend. Red alone would be taken for the mark of what is unstable."""
    handles: list[Line2D | Patch] = []
    if (table["unstable"] > 0).any():
        handles.append(
            Patch(edgecolor="black", label="some runs of the cell are unstable", **FRAME)
        )
    if _has_border(table):
        words = (
            "border of stability: right of the largest stable value\n"
            "(at most a tenth of its runs unstable), left of all if none is stable"
        )
        handles.append(Line2D([], [], label=words, **BORDER))
    return handles


def _scale(table: pd.DataFrame) -> Normalize:
    low, high = table["level"].min(), table["level"].max()
    return Normalize(low, high if high > low else low + 1)


def _ordered(values: "pd.Series[float]") -> list[object]:
    return sorted(values.unique()) if _numeric(values) else list(dict.fromkeys(values))


def _said(names: "pd.Series[str]") -> str:
    return str(names.astype(object).fillna("").iloc[0])


def _tick(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
