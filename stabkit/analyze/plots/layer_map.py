"""Draw the figure `layer-map`: the gradient of every layer at every step, a picture per run."""

import math
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
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from stabkit.analyze.cells import Cell, group_cells, run_label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.gradient_events import relative_norms
from stabkit.analyze.plots.clock import mark_clock, warmup_and_epoch, warmup_handles, warmup_in
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.style import RC, new_figure, side_by_side

COLUMNS = 3
MAX_CELLS = 12
BINS = 300  # a printed panel cannot show more columns
LIMIT = 4.0  # log2: the colors end at 16 times the median; the table holds the full values
COLORS = mpl.colormaps["viridis"]
NOTHING: dict[str, Any] = {
    "facecolor": "white",
    "edgecolor": "0.6",
    "hatch": "/////",
    "linewidth": 0,
}
WARMUP: dict[str, Any] = {  # to be seen on every color
    "color": "white",
    "linewidth": 1,
    "linestyle": ":",
    "path_effects": [withStroke(linewidth=2, foreground="0.3")],
}


def layer_map_table(runs: Diagnoses) -> pd.DataFrame:
    """Return what is drawn: the first seed of at most twelve cells, in at most 300 stretches.

    Columns: run, cell, warmup and per_epoch (`warmup_and_epoch`), layer, depth, step (first of the
    stretch), width (steps), log2 (the largest gradient norm of the stretch over the median of the
    layer, in doublings; NaN if a value is zero or not finite), spikes (onsets in the stretch), dip
    (whether accuracy is in a dip that recovered), falls (whether one begins that did not recover).
    """
    frames = [_rows(cell) for cell in group_cells(runs)[:MAX_CELLS]]
    return pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)


def _rows(cell: Cell) -> pd.DataFrame:
    run = cell.runs[0]
    norms = relative_norms(run.tables)
    head = {"run": run.name, "cell": run_label(cell, run), **warmup_and_epoch(run)}
    if norms.empty:
        return norms.assign(**head)
    steps = np.unique(norms["step"])
    width = stretch_width(steps)

    def stretch(step: pd.Series) -> pd.Series:
        return steps[0] + (step - steps[0]) // width * width

    measured = np.isfinite(norms["relative"]) & (norms["relative"] > 0)
    norms["log2"] = np.log2(norms["relative"].where(measured))
    groups = norms.groupby(["depth", "layer", stretch(norms["step"])])["log2"]
    # one value that is not finite must show, so it makes its whole stretch NaN
    table = groups.max().where(groups.count() == groups.size()).reset_index()
    found = run.gradients.spikes
    at = found.groupby([found["layer"].astype(str), stretch(found["onset"])]).size()
    at.index.names = ["layer", "step"]
    table = table.join(at.rename("spikes"), on=["layer", "step"]).fillna({"spikes": 0})
    table["dip"] = table["falls"] = False
    for dip in run.accuracy.dips.to_dict("records"):
        name, end = ("falls", "onset") if pd.isna(dip["recovery"]) else ("dip", "end")
        table[name] |= (table["step"] + width > dip["onset"]) & (table["step"] <= dip[end])
    table = table.assign(**head, width=width, spikes=table["spikes"].astype(int))
    return table[[*head, "layer", "depth", "step", "width", "log2", "spikes", "dip", "falls"]]


def stretch_width(steps: NDArray[np.int64]) -> int:
    """Return the steps in each of at most 300 stretches of whole numbers of measurements.

    `steps`: at least one, increasing, each once.
    """
    apart = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
    return apart * math.ceil((int(steps[-1] - steps[0]) // apart + 1) / BINS)


def draw_layer_map(frame: pd.DataFrame, ax: Axes, layers: list[str] | None = None) -> Axes:
    """Draw layers by steps, first layer on top; light is large. Mark spikes and dips.

    Spikes are triangles. Above the panel, a bar is a dip that recovered, and a black triangle marks
    where one began that did not. A line is the end of the warm-up.
    `frame`: rows of `layer_map_table` for one run. `layers`: the names of the rows; by default
    those of the frame. A layer that is missing, such as a frozen one, is hatched.
    """
    layers = _layers(frame) if layers is None else layers
    width = int(frame["width"].iloc[0])
    steps = np.arange(frame["step"].min(), frame["step"].max() + 1, width)
    grid = frame.pivot(index="layer", columns="step", values="log2").reindex(layers, columns=steps)
    ax.patch.set(**NOTHING)  # shows wherever no color is drawn
    edges = np.append(steps, steps[-1] + width)
    ax.pcolormesh(
        edges, np.arange(len(layers) + 1) - 0.5, np.ma.masked_invalid(grid.to_numpy(dtype=float)),
        cmap=COLORS, norm=_norm(), rasterized=True,
    )  # fmt: skip
    spiked = frame[frame["spikes"] > 0]
    ax.plot(
        spiked["step"] + width / 2, [layers.index(layer) for layer in spiked["layer"]], "v",
        color="white", markeredgecolor="black", markeredgewidth=0.7, markersize=5,
    )  # fmt: skip
    inside = frame[frame["dip"].astype(bool)].drop_duplicates("step").sort_values("step")
    for _, dip in inside.groupby((inside["step"].diff() != width).cumsum()):
        ax.plot(
            [dip["step"].min(), dip["step"].max() + width], [1.03, 1.03], color="black",
            linewidth=3, solid_capstyle="butt", transform=ax.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    for step in frame.loc[frame["falls"].astype(bool), "step"].unique():
        ax.plot(
            step + width / 2, 1.03, "v", color="black", markersize=5,
            transform=ax.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    ax.set(xlim=(edges[0], edges[-1]), ylim=(len(layers) - 0.5, -0.5), xlabel="step")
    ax.set_yticks(range(len(layers)), labels=layers, fontsize=7)
    ax.tick_params(axis="y", length=0)
    shows(ax, frame)
    mark_clock(ax, frame.assign(warmup=math.nan))  # its mark would be below the colors
    if (warmup := warmup_in(frame)) is not None:
        ax.axvline(warmup, **WARMUP)
    return ax


def layer_map_figure(table: pd.DataFrame) -> Figure:
    """Draw one panel per cell, all with the same layers and colors."""
    layers, cells = _layers(table), list(table["cell"].unique())
    columns = side_by_side(len(cells), COLUMNS)
    blocks = -(-len(cells) // columns)
    longest = max(map(len, layers))
    below = 0.4 if table["per_epoch"].notna().any() else 0.0  # inches for the axis of epochs
    handles = [*_handles(table), *warmup_handles(table, WARMUP)]
    with mpl.rc_context(RC):
        figure = new_figure(
            1.3 + 0.07 * longest + 2.6 * columns,
            0.4 + 0.2 * -(-len(handles) // columns)
            + blocks * (1.0 + below + max(1.0, 0.14 * len(layers))),
        )  # fmt: skip
        axes = figure.subplots(blocks, columns, squeeze=False, sharey=True)
        for cell, ax in zip(cells, axes.ravel(), strict=False):
            draw_layer_map(table[table["cell"] == cell], ax, layers)
            ax.set_title(wrapped(cell), pad=9)
        for ax in axes.ravel()[len(cells) :]:
            ax.axis("off")
        bar = figure.colorbar(
            ScalarMappable(_norm(), COLORS), ax=axes, extend="both", fraction=0.03, pad=0.01,
            label="gradient norm /\nmedian of the layer",
        )  # fmt: skip
        ticks = np.arange(-LIMIT, LIMIT + 1, 2).tolist()
        bar.set_ticks(ticks, labels=[f"{2**tick:g}" for tick in ticks])
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _layers(table: pd.DataFrame) -> list[str]:
    return list(table.sort_values("depth")["layer"].astype(str).unique())


def _norm() -> Normalize:
    return Normalize(-LIMIT, LIMIT)


def _handles(table: pd.DataFrame) -> list[Line2D | Patch]:
    """Return the legend of the marks that the table has, and of what needs one in any case."""
    spike = Line2D(
        [], [], marker="v", linestyle="", color="white", markeredgecolor="black",
        markeredgewidth=0.7, markersize=5, label="spike begins",
    )  # fmt: skip
    dip = Line2D([], [], color="black", linewidth=3, label="accuracy in a dip that recovered")
    falls = Line2D(
        [], [], marker="v", linestyle="", color="black", markersize=5,
        label="a dip to the end begins",
    )  # fmt: skip
    nothing = Patch(**NOTHING, label="no gradient, zero or not finite")
    one = Line2D([], [], linestyle="", label="n = 1: the first run of each cell")
    marks = [mark for mark, name in ((dip, "dip"), (falls, "falls")) if table[name].any()]
    return [spike, *marks, nothing, one]
