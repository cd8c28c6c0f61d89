"""Draw the figure `grad-norms`: first and last layers, whole and near an event (paper, Fig. 4)."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabkit.analyze.cells import Cell, group_cells, run_label, wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.curves import (
    accuracy_axis,
    gradient_curves,
    loss_curve,
    loss_events,
    main_loss,
    spacing,
    two_lines,
)
from stabkit.analyze.plots.layer_styles import (
    GRAY,
    Styles,
    layer_handles,
    layer_styles,
    mark_spikes,
    say_nothing,
)
from stabkit.analyze.plots.note_lines import shows
from stabkit.analyze.plots.style import RC, new_figure

COLUMNS = 3
MAX_CELLS = 12
AROUND = 30  # steps before and after the onset of an event, zoomed


def grad_norms_table(runs: Diagnoses) -> pd.DataFrame:
    """Return what is drawn: the first seed of at most twelve cells.

    Rows of series `grad_norm`: step, layer (or the name of a norm of the whole model), depth,
    value, relative (value over the median of the layer in that run), event (true at the peak of a
    spike), zoom (true around the largest burst of the run, or else around the onset of its deepest
    dip or largest loss spike). Rows of series `accuracy`, or of `loss` in a run without accuracies:
    step, layer (the recorded name), value, event (true inside a dip, or a spike of the loss).
    """
    cells = group_cells(runs)[:MAX_CELLS]
    frames = [part for cell in cells for part in (_layer_rows(cell), _result_rows(cell))]
    if not any(len(rows) for rows in frames[0::2]):
        return frames[0]  # no run has layers: there is nothing to draw
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)


def _layer_rows(cell: Cell) -> pd.DataFrame:
    run = cell.runs[0]
    rows = gradient_curves(run)
    found = run.spikes
    peaks = set(zip(found["layer"].astype(str), found["peak"], strict=True))
    rows["event"] = [at in peaks for at in zip(rows["layer"], rows["step"], strict=True)]
    onset = _zoomed_at(run, run.bursts)
    around = AROUND * spacing(rows["step"])
    rows["zoom"] = False if onset is None else rows["step"].between(onset - around, onset + around)
    return rows.assign(run=run.name, cell=run_label(cell, run), series="grad_norm")


def _zoomed_at(run: Diagnosis, bursts: pd.DataFrame) -> int | None:
    if len(bursts):
        return int(bursts.loc[bursts["ratio"].idxmax(), "onset"])
    for found, size in ((run.dips, "depth"), (run.loss_spikes, "ratio")):
        if len(found):
            return int(found.loc[found[size].idxmax(), "onset"])
    return None


def _result_rows(cell: Cell) -> pd.DataFrame:
    """Return the accuracy of a run; its loss if it has none."""
    run = cell.runs[0]
    rows, series, name = run.evals(run.metric)[["step", "value"]], "accuracy", run.metric
    events = [(dip["onset"], dip["end"]) for dip in run.dips.to_dict("records")]
    if rows.empty and (loss := main_loss(run)):
        rows, series, name = loss_curve(run, loss).reset_index(), "loss", loss
        events = loss_events(run, loss)
    rows = rows.assign(event=False, zoom=False)
    for onset, end in events:
        rows["event"] |= rows["step"].between(onset, end)
    return rows.assign(run=run.name, cell=run_label(cell, run), series=series, layer=name)


def draw_grad_norms(frame: pd.DataFrame, ax: Axes, styles: Styles | None = None) -> Axes:
    """Draw the gradient norm of each layer of one run over its median; mark spikes on top.

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
    shows(ax, frame)
    return ax


def grad_norms_figure(table: pd.DataFrame) -> Figure:
    """Draw one panel a cell, accuracy or loss below it, and the three largest events zoomed."""
    styles = layer_styles(table)
    cells = list(table["cell"].unique())
    near = table[table["zoom"].astype(bool)]
    peaks = near.groupby("cell", sort=False)["relative"].max()
    zoomed = [cell for cell in cells if cell in peaks.nlargest(COLUMNS).index]
    columns = min(COLUMNS, len(cells))
    blocks, zooms = -(-len(cells) // columns), -(-len(zoomed) // columns)
    with mpl.rc_context(RC):
        figure = new_figure(1.2 + 2.7 * columns, 0.5 + 3.4 * blocks + 2.2 * zooms)
        axes = figure.subplots(
            2 * blocks + zooms, columns, squeeze=False,
            gridspec_kw={"height_ratios": [3, 2] * blocks + [3] * zooms},
        )  # fmt: skip
        uppers, lowers = list(axes[0 : 2 * blocks : 2].flat), list(axes[1 : 2 * blocks : 2].flat)
        for cell, upper, lower in zip(cells, uppers, lowers, strict=False):
            rows = table[table["cell"] == cell]
            draw_grad_norms(rows, upper, styles)
            _draw_result(lower, rows[rows["series"] != "grad_norm"])
            upper.set_title(wrapped(cell))
            upper.tick_params(labelbottom=False)
            lower.set(xlim=upper.get_xlim(), xlabel="step")
        below = list(axes[2 * blocks :].flat)
        for cell, ax in zip(zoomed, below, strict=False):
            draw_grad_norms(near[near["cell"] == cell], ax, styles)
            ax.set(xlabel="step")
            ax.set_title(wrapped(f"zoomed, {cell}"))
        relative = grad_norms_axis(table).replace("/ ", "/\n")
        results = table[table["series"] != "grad_norm"].drop_duplicates(["series", "layer"])
        scale = results["series"].nunique() == 1 and set(results["series"]) == {"accuracy"}
        _finish(uppers, relative, len(cells), columns, shared=True)
        _finish(lowers, _result_name(results), len(cells), columns, shared=scale)
        _finish(below, relative, len(zoomed), columns, shared=False)
        layers = table[table["series"] == "grad_norm"]
        others = layers["layer"].nunique() > len(styles)
        handles = layer_handles(styles, others=others, spikes=bool(layers["event"].any()))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=(2, 3, len(handles))[columns - 1]
        )
    return figure


def grad_norms_axis(table: pd.DataFrame) -> str:
    """Return the name of the upper axes."""
    whole = table.loc[table["series"] == "grad_norm", "layer"].nunique() == 1
    return f"gradient norm / {'its median' if whole else 'median of the layer'}"


def _result_name(results: pd.DataFrame) -> str:
    """Return the name of the lower axes; `results` has a row for each series and recorded name."""
    named = [
        accuracy_axis(name) if series == "accuracy" else name
        for series, name in zip(results["series"], results["layer"], strict=True)
    ]
    return two_lines(" or ".join(named))


def _draw_result(ax: Axes, rows: pd.DataFrame) -> None:
    if rows.empty:
        return say_nothing(ax, "not recorded")
    shows(ax, rows)
    ax.plot(rows["step"], rows["value"], color="black", linewidth=0.9)
    event = rows["event"].astype(bool)
    number = (event != event.shift()).cumsum()
    for _, dip in rows[event].groupby(number):
        ax.axvspan(dip["step"].min(), dip["step"].max(), color="0.8", linewidth=0.8, zorder=0)
    return None


def _finish(panels: Sequence[Axes], name: str, used: int, columns: int, *, shared: bool) -> None:
    """Names on the left; `shared`: one scale for all, so that what looks larger is."""
    drawn = [ax for ax in panels[:used] if ax.lines]
    limits = [ax.get_ylim() for ax in drawn]
    for ax in drawn if shared else []:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for ax in panels[:used:columns]:
        ax.set_ylabel(name)
    for ax in panels[used:]:
        ax.axis("off")
