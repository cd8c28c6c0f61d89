"""Figure `grad-norms`: each layer's gradient relative to its scale, kNN below (paper, Fig. 4)."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from stabkit.analyze.cells import Cell, cell_label, group_cells
from stabkit.analyze.events import dips, spikes
from stabkit.analyze.style import RC, new_figure, ramp
from stabkit.store.reader import Run, Runs

COLUMNS = 3
MAX_CELLS = 12


def grad_norms_table(runs: Runs) -> pd.DataFrame:
    """One row a step and layer: run, step, layer, depth, grad_norm, and its ratio to the median.

    `relative` is grad_norm over the layer's median in that run; one run a cell, its first seed.
    """
    frames = []
    for cell in group_cells(runs)[:MAX_CELLS]:
        rows = cell.runs[0].signals()[["step", "layer", "depth", "grad_norm"]].dropna()
        rows["layer"] = rows["layer"].astype(str)
        finite = rows["grad_norm"].where(np.isfinite(rows["grad_norm"]))
        median = finite.groupby(rows["layer"]).transform("median")
        frames.append(rows.assign(run=cell.runs[0].name, relative=rows["grad_norm"] / median))
    return pd.concat(frames, ignore_index=True)


def draw_grad_norms(runs: Runs) -> Figure:
    """gradient norm of each layer relative to its median, first to last layer, with kNN below."""
    table, cells = grad_norms_table(runs), group_cells(runs)[:MAX_CELLS]
    layers = table.sort_values("depth")["layer"].drop_duplicates().tolist()
    colours = dict(zip(layers, ramp(len(layers)), strict=True))
    columns = min(COLUMNS, len(cells))
    blocks = -(-len(cells) // columns)
    figure = new_figure(1.2 + 2.7 * columns, 3.3 * blocks)
    with mpl.rc_context(RC):
        axes = figure.subplots(
            2 * blocks,
            columns,
            sharex=True,
            sharey=False,
            squeeze=False,
            gridspec_kw={"height_ratios": [2, 1] * blocks},
        )
        for i, cell in enumerate(cells):
            upper, lower = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
            run = cell.runs[0]
            _draw_layers(upper, table[table["run"] == run.name], run, colours)
            _draw_knn(lower, run)
            upper.set_title(_title(cell))
        for ax in axes.ravel()[_unused(len(cells), columns, blocks)]:
            ax.axis("off")
        _share_limits(axes, blocks)
        _label_axes(axes, blocks)
        _colourbar(figure, axes, layers, colours)
    return figure


def _draw_layers(
    ax: Axes, rows: pd.DataFrame, run: Run, colours: dict[str, tuple[float, float, float]]
) -> None:
    last_to_first = sorted(rows.groupby("layer"), key=lambda item: -item[1]["depth"].iloc[0])
    for layer, series in last_to_first:  # the first layers, where spikes begin, on top
        ax.plot(series["step"], series["relative"], color=colours[layer], linewidth=0.6)
    for spike in spikes(run).itertuples():
        ax.plot(
            spike.peak,
            1.0,
            marker="v",
            markersize=4,
            clip_on=False,
            linestyle="",
            transform=ax.get_xaxis_transform(),
            color=colours[spike.layer],
            markeredgecolor="black",
            markeredgewidth=0.4,
        )
    ax.set_yscale("log")


def _draw_knn(ax: Axes, run: Run) -> None:
    evals = run.evals("knn_heldout")
    ax.plot(evals["step"], evals["value"], color="black", linewidth=0.9)
    for dip in dips(run).itertuples():
        end = evals["step"].max() if pd.isna(dip.recovery) else dip.recovery
        ax.axvspan(dip.onset, end, color="0.8", linewidth=0, zorder=0)


def _title(cell: Cell) -> str:
    words = cell_label(cell).split(", ")
    seed = f" (seed {cell.runs[0].settings.get('seed')})" if len(cell.runs) > 1 else ""
    return "\n".join(words) + seed


def _unused(count: int, columns: int, blocks: int) -> list[int]:
    grid = np.arange(2 * blocks * columns).reshape(2 * blocks, columns)
    return [
        int(k)
        for i in range(count, blocks * columns)
        for k in grid[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
    ]


def _share_limits(axes: np.ndarray, blocks: int) -> None:
    """One scale for all panels of a kind: what looks larger is larger."""
    for kind in (0, 1):
        panels = [ax for ax in axes[kind::2].ravel() if ax.axison]
        low = min(ax.get_ylim()[0] for ax in panels)
        high = max(ax.get_ylim()[1] for ax in panels)
        for ax in panels:
            ax.set_ylim(low, high)


def _label_axes(axes: np.ndarray, blocks: int) -> None:
    for block in range(blocks):
        axes[2 * block, 0].set_ylabel("gradient norm /\nmedian of the layer")
        axes[2 * block + 1, 0].set_ylabel("held-out\nkNN accuracy")
    for ax in axes[-1]:
        ax.set_xlabel("step")


def _colourbar(
    figure: Figure,
    axes: np.ndarray,
    layers: list[str],
    colours: dict[str, tuple[float, float, float]],
) -> None:
    colourmap = ListedColormap([colours[layer] for layer in layers])
    norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
    bar = figure.colorbar(ScalarMappable(norm, colourmap), ax=axes, aspect=40, pad=0.01)
    bar.set_ticks(range(len(layers)), labels=layers, fontsize=7)
    bar.ax.invert_yaxis()
    bar.ax.tick_params(length=0)
    bar.minorticks_off()
