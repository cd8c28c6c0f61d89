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
from stabkit.analyze.style import RC, Colour, new_figure, ramp
from stabkit.store.reader import Runs

COLUMNS = 3
MAX_CELLS = 12


def grad_norms_table(runs: Runs) -> pd.DataFrame:
    """What is drawn: the first seed of at most twelve cells.

    Rows of series `grad_norm`: step, layer, depth, value, relative (value over the layer's median
    in that run), event (true at the peak of a spike). Rows of series `knn`: step, value, event
    (true inside a dip).
    """
    cells = group_cells(runs)[:MAX_CELLS]
    frames = [part for cell in cells for part in (_layer_rows(cell), _knn_rows(cell))]
    if not any(len(rows) for rows in frames[0::2]):
        return frames[0]  # no layer of any run: nothing to draw
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)


def _layer_rows(cell: Cell) -> pd.DataFrame:
    run = cell.runs[0]
    rows = run.signals()[["step", "layer", "depth", "grad_norm"]].dropna()
    rows = rows.rename(columns={"grad_norm": "value"}).assign(layer=rows["layer"].astype(str))
    finite = rows["value"].where(np.isfinite(rows["value"]))
    rows["relative"] = rows["value"] / finite.groupby(rows["layer"]).transform("median")
    found = spikes(run)
    peaks = set(zip(found["layer"].astype(str), found["peak"], strict=True))
    rows["event"] = [at in peaks for at in zip(rows["layer"], rows["step"], strict=True)]
    return rows.assign(run=run.name, cell=_title(cell), series="grad_norm")


def _knn_rows(cell: Cell) -> pd.DataFrame:
    run = cell.runs[0]
    rows = run.evals("knn_heldout")[["step", "value"]].assign(event=False)
    for dip in dips(run).to_dict("records"):
        rows["event"] |= rows["step"].between(dip["onset"], dip["end"])
    return rows.assign(run=run.name, cell=_title(cell), series="knn")


def _title(cell: Cell) -> str:
    seed = f", seed {cell.runs[0].settings.get('seed')}" if len(cell.runs) > 1 else ""
    return cell_label(cell) + seed


def grad_norms_figure(table: pd.DataFrame) -> Figure:
    """A panel a cell of `draw_grad_norms`, with kNN below it."""
    colours = _colours(table)
    cells = table["cell"].unique()
    columns = min(COLUMNS, len(cells))
    blocks = -(-len(cells) // columns)
    with mpl.rc_context(RC):
        figure = new_figure(1.2 + 2.7 * columns, 3.4 * blocks)
        axes = figure.subplots(
            2 * blocks, columns, sharex=True, squeeze=False,
            gridspec_kw={"height_ratios": [3, 2] * blocks},
        )  # fmt: skip
        uppers, lowers = axes[0::2].ravel(), axes[1::2].ravel()
        for cell, upper, lower in zip(cells, uppers, lowers, strict=False):
            rows = table[table["cell"] == cell]
            draw_grad_norms(rows, upper, colours)
            _draw_knn(lower, rows[rows["series"] == "knn"])
            upper.set_title(cell if len(cell) < 35 else cell.replace(", ", "\n"))
        for panels, name in (
            (uppers, "gradient norm /\nmedian of the layer"),
            (lowers, "held-out\nkNN accuracy"),
        ):
            _finish(panels, name, len(cells), columns)
        for ax in axes[-1]:
            ax.set_xlabel("step")
        _colourbar(figure, axes, colours)
    return figure


def draw_grad_norms(
    frame: pd.DataFrame, ax: Axes, colours: dict[str, Colour] | None = None
) -> Axes:
    """Gradient norm of each layer of one run relative to its median; spikes marked above.

    `frame`: one run's rows of `grad_norms_table`; `colours` by layer, dark to light by default.
    """
    colours = _colours(frame) if colours is None else colours
    rows = frame[frame["series"] == "grad_norm"]
    # last layers first, so that the first ones, where spikes begin, lie on top
    for layer, series in sorted(rows.groupby("layer"), key=lambda item: -item[1]["depth"].iloc[0]):
        ax.plot(series["step"], series["relative"], color=colours[layer], linewidth=0.6)
        for peak in series[series["event"]]["step"]:
            ax.plot(
                peak, 1, marker="v", markersize=4, clip_on=False, color=colours[layer],
                transform=ax.get_xaxis_transform(), markeredgecolor="black", markeredgewidth=0.4,
            )  # fmt: skip
    ax.set_yscale("log")
    return ax


def _colours(table: pd.DataFrame) -> dict[str, Colour]:
    layers = table.dropna(subset="depth").sort_values("depth")["layer"].unique().tolist()
    return dict(zip(layers, ramp(len(layers)), strict=True))


def _draw_knn(ax: Axes, rows: pd.DataFrame) -> None:
    ax.plot(rows["step"], rows["value"], color="black", linewidth=0.9)
    number = (rows["event"] != rows["event"].shift()).cumsum()
    for _, dip in rows[rows["event"]].groupby(number):
        ax.axvspan(dip["step"].min(), dip["step"].max(), color="0.8", linewidth=0, zorder=0)


def _finish(
    panels: "np.ndarray[tuple[int], np.dtype[np.object_]]", name: str, used: int, columns: int
) -> None:
    """One scale for all panels of a kind, so that what looks larger is; names on the left."""
    limits = [ax.get_ylim() for ax in panels[:used]]
    for ax in panels[:used]:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for ax in panels[::columns]:
        ax.set_ylabel(name)
    for ax in panels[used:]:
        ax.axis("off")


def _colourbar(
    figure: Figure,
    axes: "np.ndarray[tuple[int, int], np.dtype[np.object_]]",
    colours: dict[str, Colour],
) -> None:
    norm = BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours))
    mappable = ScalarMappable(norm, ListedColormap(list(colours.values())))
    bar = figure.colorbar(mappable, ax=axes, fraction=0.03, pad=0.01)
    bar.set_ticks(range(len(colours)), labels=list(colours), fontsize=7)
    bar.ax.invert_yaxis()
    bar.ax.tick_params(length=0)
    bar.minorticks_off()
