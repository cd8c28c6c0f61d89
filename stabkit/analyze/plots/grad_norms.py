"""Draw the figure `grad-norms`: the first layer above the last block (after the paper's Fig. 4)."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabkit.analyze.cells import Cell, group_cells, run_label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.clock import mark_clock, warmup_and_epoch
from stabkit.analyze.plots.curves import (
    gradient_curves,
    loss_curve,
    loss_events,
    main_loss,
    spacing,
)
from stabkit.analyze.plots.layer_styles import (
    GRAY,
    Styles,
    layer_handles,
    layer_styles,
    mark_spikes,
    telling_layers,
)
from stabkit.analyze.plots.many import say_left_out, seed_or_run, seeds_drawn
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.style import RC, new_figure, side_by_side
from stabkit.analyze.text import times

COLUMNS = 3
MAX_CELLS = 12
AROUND = 30  # steps before and after the onset of an event, zoomed
SHADE = "0.88"
SAID_WIDTH = 38  # characters a line above a panel
SAID_PAD = 27  # points for two such lines, between a panel and its title


def grad_norms_table(runs: Diagnoses) -> pd.DataFrame:
    """Return what is drawn: the first seed of at most twelve cells.

    Rows of series `grad_norm`: step, layer (or the name of a norm of the whole model), depth,
    value, relative (value over the median of the layer in that run), event (true at the peak of a
    spike), zoom (true around the largest burst of the run), said (what the burst was, in words, at
    its peak), seeds (of the cell), seed, warmup and per_epoch (`warmup_and_epoch`). Rows of series
    `accuracy`, or of `loss` in a run without accuracies: step, layer (the recorded name), value,
    event (true inside a dip that recovered, or a spike of the loss).
    """
    cells = group_cells(runs)[:MAX_CELLS]
    frames = [part for cell in cells for part in (_layer_rows(cell), _result_rows(cell))]
    if not any(len(rows) for rows in frames[0::2]):
        return frames[0]  # no run has layers: there is nothing to draw
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)


def _layer_rows(cell: Cell) -> pd.DataFrame:
    run = cell.runs[0]
    rows = gradient_curves(run)
    found = run.gradients.spikes
    peaks = set(zip(found["layer"].astype(str), found["peak"], strict=True))
    rows["event"] = [at in peaks for at in zip(rows["layer"], rows["step"], strict=True)]
    rows["zoom"], rows["said"] = False, ""
    bursts = run.gradients.bursts
    if len(bursts):
        burst = bursts.loc[bursts["ratio"].idxmax()]
        onset, around = int(burst["onset"]), AROUND * spacing(rows["step"])
        rows["zoom"] = rows["step"].between(onset - around, onset + around)
        first = rows["layer"].astype(str) == str(burst["first"]).split(", ")[0]
        inside = rows[first & rows["step"].between(onset, burst["end"])]
        if inside["relative"].notna().any():
            rows.loc[inside["relative"].idxmax(), "said"] = _burst_words(run, burst, rows)
    return rows.assign(
        run=run.name, cell=run_label(cell, run), series="grad_norm", seeds=len(cell.runs),
        seed=run.settings.get("seed"), **warmup_and_epoch(run),
    )  # fmt: skip


def _burst_words(run: Diagnosis, burst: "pd.Series[Any]", rows: pd.DataFrame) -> str:
    """Say how high a burst was, when it began, and how much later it reached the last block."""
    text = f"{times(burst['ratio'])} what was expected, from step {int(burst['onset']):,}"
    last = _upper_and_lower(rows)[-1]
    onsets = run.gradients.onsets
    reached = onsets[(onsets["burst"] == burst.name) & (onsets["layer"].astype(str) == last)]
    lag = int(reached["lag"].iloc[0]) if len(reached) else 0
    text += f", {lag} step{'' if lag == 1 else 's'} before {last}" if lag > 0 else ""
    return textwrap.fill(text, SAID_WIDTH)


def _upper_and_lower(rows: pd.DataFrame) -> list[str]:
    """Return the first layer and the last block; the last layer where no layers are blocks."""
    return telling_layers(rows)[:2]


def _result_rows(cell: Cell) -> pd.DataFrame:
    """Return the accuracy of a run; its loss if it has none."""
    run = cell.runs[0]
    found = run.accuracy
    rows, series, name = found.evals[["step", "value"]], "accuracy", found.metric
    dips = found.dips.to_dict("records")
    # one that never ended would be shaded to the end of the run, as if that were one event
    events = [(dip["onset"], dip["end"]) for dip in dips if not pd.isna(dip["recovery"])]
    if rows.empty and (loss := main_loss(run)):
        rows, series, name = loss_curve(run, loss).reset_index(), "loss", loss
        events = loss_events(run, loss)
    rows = rows.assign(event=False, zoom=False)
    for onset, end in events:
        rows["event"] |= rows["step"].between(onset, end)
    return rows.assign(run=run.name, cell=run_label(cell, run), series=series, layer=name)


def draw_grad_norms(frame: pd.DataFrame, ax: Axes, styles: Styles | None = None) -> Axes:
    """Draw the gradient norm of each layer of one run over its median; mark spikes on top.

    The largest burst is named above the panel. Dips that recovered and spikes of the loss are
    shaded.

    `frame`: rows of `grad_norms_table` for one run. `styles`: by layer, for the layers in front; by
    default the first layer, the last block and the last layer. All others are a gray shadow.
    """
    styles = layer_styles(frame) if styles is None else styles
    rows = frame[(frame["series"] == "grad_norm") & np.isfinite(frame["relative"])]
    rows = rows[rows["relative"] > 0]
    for layer, series in rows.groupby("layer"):
        style = styles.get(str(layer), GRAY)
        ax.plot(series["step"], series["relative"], **style)
        peaks = series.loc[series["event"].astype(bool), "step"]
        mark_spikes(ax, peaks, style["color"], style["zorder"])
    ax.set_yscale("log")
    _say_burst(ax, rows)
    _shade(ax, frame)
    shows(ax, frame)
    return ax


def _say_burst(ax: Axes, rows: pd.DataFrame) -> None:
    for row in rows[rows["said"].map(lambda said: isinstance(said, str) and bool(said))].to_dict(
        "records"
    ):
        ax.annotate(  # above, because in the panel it would hide what it describes
            row["said"], (0.5, 1), xycoords="axes fraction", xytext=(0, 5), ha="center",
            textcoords="offset points", fontsize=6.5, color="0.15", va="bottom",
        )  # fmt: skip


def _shade(ax: Axes, frame: pd.DataFrame) -> None:
    rows = frame[frame["series"] != "grad_norm"]
    event = rows["event"].astype(bool)
    number = (event != event.shift()).cumsum()
    for _, dip in rows[event].groupby(number):
        ax.axvspan(dip["step"].min(), dip["step"].max(), color=SHADE, linewidth=0.8, zorder=0)


def grad_norms_figure(table: pd.DataFrame) -> Figure:
    """Draw the first layer above the last block, a column per cell; below, the largest bursts."""
    cells = list(table["cell"].unique())
    return _figure(table, cells, _zoomed(table), side_by_side(len(cells), COLUMNS))


def grad_norms_panels(table: pd.DataFrame) -> list[Figure]:
    """Draw each cell, and then each burst, as a figure of its own, all cells on one scale."""
    cells = list(table["cell"].unique())
    wholes = [_figure(table, [cell], [], 1) for cell in cells]
    return wholes + [_figure(table, [], [cell], 1) for cell in _zoomed(table)]


def _zoomed(table: pd.DataFrame) -> list[Any]:
    """Return the cells with the largest bursts; none without a burst."""
    peaks = table[table["zoom"].astype(bool)].groupby("cell", sort=False)["relative"].max()
    return [cell for cell in table["cell"].unique() if cell in peaks.nlargest(COLUMNS).index]


def _figure(table: pd.DataFrame, cells: list[Any], zoomed: list[Any], columns: int) -> Figure:
    layers = table[table["series"] == "grad_norm"]
    both, styles = _upper_and_lower(layers), layer_styles(layers)
    drawn, blocks = len(both), -(-len(cells) // columns)
    zooms = -(-len(zoomed) // columns)
    heights = [*[1.35] * (drawn * blocks), *[2.0] * zooms]
    with mpl.rc_context(RC):
        figure = new_figure(0.4 + 2.5 * columns, 0.5 + sum(heights) + 0.5 * (blocks + zooms))
        axes = figure.subplots(
            len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for ax in axes.flat:
            ax.axis("off")
        panels: list[Axes] = []
        for number, cell in enumerate(cells):
            row, column = drawn * (number // columns), number % columns
            rows = table[table["cell"] == cell]
            for layer, ax in zip(both, axes[row : row + drawn, column], strict=True):
                ax.axis("on")
                draw_grad_norms(_of_layer(rows, layer), ax, styles)
                if not ax.lines:
                    ax.text(
                        0.5, 0.5, "frozen, or not recorded", transform=ax.transAxes, ha="center",
                        va="center", color="0.4", fontsize=8,
                    )  # fmt: skip
                ax.set_xlim(rows["step"].min(), rows["step"].max())
                if column == 0 and drawn > 1:
                    ax.set_ylabel(wrapped(layer, 18))
                ax.tick_params(labelbottom=layer == both[-1])
                panels.append(ax)
            axes[row, column].set_title(wrapped(cell), pad=_pad(axes[row, column]))
            mark_clock(ax, rows[rows["series"] == "grad_norm"], named=False)
            ax.set_xlabel("step")
        for cell, ax in zip(zoomed, axes[len(axes) - zooms :].flat, strict=False):
            ax.axis("on")
            draw_zoom(table[table["cell"] == cell], ax, styles)
            ax.set_title(f"zoomed, {wrapped(cell)}", pad=_pad(ax))
        _one_scale(panels, layers, both)
        figure.supylabel(grad_norms_axis(table), fontsize=8.5)
        handles = layer_handles(
            styles if zoomed else {layer: styles[layer] for layer in both},
            others=bool(zoomed) and layers["layer"].nunique() > len(styles),
            spikes=bool(layers["event"].any()),
        )
        if len(cells) != 1 or zoomed:  # the axes of a single cell are named by its layers
            columns = 3 if columns == 1 else len(handles)
            figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        say_left_out(figure, _of_seeds(layers, cells))
    return figure


def _pad(ax: Axes) -> float | None:
    """Return the room for words between a panel and its title, in points; None by default."""
    return SAID_PAD if ax.texts and ax.lines else None


def draw_zoom(frame: pd.DataFrame, ax: Axes, styles: Styles) -> Axes:
    """Draw all layers of one run in the steps around its largest burst."""
    near = frame[frame["zoom"].astype(bool)]
    draw_grad_norms(near, ax, styles)
    ax.set_xlabel("step")
    return ax


def _of_layer(rows: pd.DataFrame, layer: str) -> pd.DataFrame:
    return rows[(rows["series"] != "grad_norm") | (rows["layer"].astype(str) == layer)]


def _one_scale(panels: Sequence[Axes], layers: pd.DataFrame, both: Sequence[str]) -> None:
    """Set one scale for all panels of all figures of a table, so that what looks larger is."""
    values = layers.loc[layers["layer"].astype(str).isin(both), "relative"]
    values = values[np.isfinite(values) & (values > 0)]
    for ax in panels if len(values) else ():
        ax.set_ylim(values.min() / 1.5, values.max() * 1.8)


def _of_seeds(layers: pd.DataFrame, cells: Sequence[Any]) -> str:
    """Say which run of a cell of several seeds is drawn."""
    layers = layers[layers["cell"].isin(cells)] if len(cells) else layers
    most = int(layers["seeds"].max())
    if most > 1:
        return f"the first of {most} {seed_or_run(layers['seed'])}s"
    return seeds_drawn(layers["seeds"], layers["seed"])


def grad_norms_axis(table: pd.DataFrame) -> str:
    """Return the name of the vertical axes."""
    whole = table.loc[table["series"] == "grad_norm", "layer"].nunique() == 1
    return f"gradient norm / {'its median' if whole else 'median of the layer'}"
