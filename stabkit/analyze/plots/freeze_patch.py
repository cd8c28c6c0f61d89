"""Draw the figure `freeze-patch`: frozen against learned patch projection, in pairs."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stabkit.analyze.compare import compare_pairs
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.plots.contrast import refuse_constant, scored, words
from stabkit.analyze.plots.many import PAIRS, ROWS, evenly, say_left_out, without_unfinished
from stabkit.analyze.plots.style import RC, Color, new_figure, ramp
from stabkit.analyze.verdict import is_unstable

FREEZE = "model.freeze_patch_embed"
ARMS = {"learned": False, "frozen": True}
ALL = "all pairs"
EDGE: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.5}


def freeze_patch_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row a pair, then one row a group, then one row for all pairs.

    `row` is `pair` or `mean`. A pair has group (the other settings), seed, learned, frozen (levels
    in points), learned_unstable, frozen_unstable and difference. A group has difference (mean),
    low, high (95 %; NaN for few pairs, see `paired_test`) and n (pairs).

    Runs without a partner are left out, and those that have not ended, which `unfinished` counts.
    Raises DoesNotApplyError if no run has a partner.
    """
    frame, factors = scored(runs)
    if frame.empty:
        return frame
    refuse_constant(runs, FREEZE, factors, "frozen and learned cannot be compared")
    rest = [key for key in factors if key != FREEZE]
    frame = frame.assign(
        group=[words(row, rest) for row in frame.to_dict("records")],
        unstable=is_unstable(frame),
        seed=frame["seed"].fillna(-1),
    )
    arms = {
        name: frame[frame[FREEZE] == value].groupby(["group", "seed"], sort=False)
        for name, value in ARMS.items()
    }
    columns = {name: rows["level"].mean() for name, rows in arms.items()}
    columns |= {f"{name}_unstable": rows["unstable"].any() for name, rows in arms.items()}
    pairs = pd.concat(columns, axis=1, join="inner").reset_index()
    if pairs.empty:
        raise DoesNotApplyError(
            f"{runs.path}: no frozen run shares its seed and {', '.join(rest) or 'settings'} with "
            "a learned one"
        )
    pairs["difference"] = pairs["frozen"] - pairs["learned"]
    order = {group: i for i, group in enumerate(dict.fromkeys(frame["group"]))}
    pairs = pairs.sort_values("group", key=lambda g: g.map(order), kind="stable")
    groups = [(str(name), rows) for name, rows in pairs.groupby("group", sort=False)]
    means = [_mean(name, rows) for name, rows in groups]
    if len(groups) > 1:
        means.append(_mean(ALL, pairs))
    table = pd.concat([pairs.assign(row="pair"), pd.DataFrame(means)], ignore_index=True)
    return table.assign(unfinished=frame["unfinished"].max())


def _mean(group: str, pairs: pd.DataFrame) -> dict[str, object]:
    found = compare_pairs(pairs["learned"], pairs["frozen"])
    low, high = found.interval
    head = {"row": "mean", "group": group, "difference": found.effect}
    return head | {"low": low, "high": high, "n": found.n[0]}


def freeze_patch_figure(table: pd.DataFrame) -> Figure:
    """Draw each pair as a line from learned to frozen, and the mean difference of each group.

    If there are very many groups and pairs, only some are drawn; means and intervals are those of
    all pairs.
    """
    table, *left_out = _some(table)
    groups = _groups(table)
    with mpl.rc_context(RC):
        width, most = 0.06 * max(map(len, groups)), _most(table)
        height = 1.3 + len(groups) * max(0.3, 0.13 * most)
        figure = new_figure(width + 6.0, height)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        draw_freeze_patch(table, left)
        draw_differences(table, right)
        right.tick_params(labelleft=False, left=False)
        colors = _colors()
        handles = [
            Line2D([], [], linestyle="", marker=mark, color=color, label=name, **EDGE)
            for name, mark, color in (
                *((name, "o", colors[name]) for name in ARMS),
                ("unstable", "X", (0.6, 0.6, 0.6)),
            )
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower left", ncols=3)
        say_left_out(figure, *left_out, without_unfinished(table))
    return figure


def _some(table: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """Return the rows to draw, and notes on the groups and pairs left out, if there are any."""
    means, notes = table[table["row"] == "mean"], ["", ""]
    parts = means[means["group"] != ALL]
    if len(parts) > ROWS:
        notes[0] = f"the {ROWS} of {len(parts):,} groups with the largest differences"
        parts = parts.loc[parts["difference"].abs().nlargest(ROWS).index]
        table = table[table["group"].isin([ALL, *parts["group"]])]
    pairs = table[table["row"] == "pair"]
    most = max(5, PAIRS // max(1, len(parts)))
    if len(pairs) > PAIRS and _most(table) > most:
        notes[1] = f"at most {most} pairs of a group, evenly spaced by their difference"
        drawn = [
            place
            for _, rows in pairs.groupby("group", sort=False)
            for place in evenly(list(rows["difference"].sort_values().index), most)
        ]
        table = table[(table["row"] == "mean") | table.index.isin(drawn)]
    return table, notes[0], notes[1]


def draw_freeze_patch(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one row a group, and in it a line for each pair; a cross is an unstable run."""
    colors = _colors()
    pairs = table[table["row"] == "pair"]
    for y, group in enumerate(_groups(table)):
        rows = pairs[pairs["group"] == group]
        places = np.linspace(-0.28, 0.28, len(rows)) if len(rows) != 1 else [0.0]
        for offset, pair in zip(places, rows.to_dict("records"), strict=True):
            ends = [pair["learned"], pair["frozen"]]
            ax.plot(ends, [y + offset] * 2, color="0.5", linewidth=0.9, zorder=1)
            for name, color in colors.items():
                mark = "X" if pair[f"{name}_unstable"] in (True, "True") else "o"
                ax.plot(
                    pair[name], y + offset, mark, color=color, markersize=5, **EDGE
                )  # fmt: skip
    ax.set(xlabel="final held-out kNN accuracy, %", title="each pair of one seed")
    return _rows(ax, _groups(table))


def draw_differences(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the mean of frozen minus learned, with its 95 % interval if there are enough pairs."""
    groups = _groups(table)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    for mean in table[table["row"] == "mean"].to_dict("records"):
        y = groups.index(mean["group"])
        if not math.isnan(mean["low"]):
            ax.plot([mean["low"], mean["high"]], [y, y], color="black", linewidth=1.2)
        ax.plot(mean["difference"], y, "D", color="black", markersize=4.5)
        ax.annotate(
            f"{mean['difference']:+.1f}  n = {mean['n']:.0f}", (1.0, y), xytext=(4, 0),
            xycoords=ax.get_yaxis_transform(), textcoords="offset points", va="center", fontsize=7,
        )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set(xlabel="points", title="frozen - learned\n(mean; 95 % from ten pairs on)")
    return _rows(ax, groups)


def _colors() -> dict[str, Color]:
    """Return the colors of the arms. Learned runs are hollow, so gray prints tell them apart."""
    return {"learned": (1.0, 1.0, 1.0), "frozen": ramp(2)[0]}


def _groups(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["group"]))


def _most(table: pd.DataFrame) -> int:
    return int(table.loc[table["row"] == "pair", "group"].value_counts().max())


def _rows(ax: Axes, groups: list[str]) -> Axes:
    ax.set_yticks(range(len(groups)), labels=groups)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.grid(axis="y", linewidth=0.4, color="0.9")
    ax.margins(x=0.08)
    return ax
