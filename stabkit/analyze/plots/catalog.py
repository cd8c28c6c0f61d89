"""List every figure of `stabkit analyze --plot NAME`, draw it and write it to disk."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabkit.analyze.csv_file import write_csv
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.plots.accuracy_table import (
    accuracy_table,
    accuracy_table_figure,
    draw_accuracy_table,
    write_texts,
)
from stabkit.analyze.plots.event_zoom import event_zoom_figure, event_zoom_table
from stabkit.analyze.plots.free_places import place_labels
from stabkit.analyze.plots.freeze_patch import freeze_patch_figure, freeze_patch_table
from stabkit.analyze.plots.grad_norms import (
    draw_grad_norms,
    grad_norms_axis,
    grad_norms_figure,
    grad_norms_table,
)
from stabkit.analyze.plots.knn import draw_knn, knn_axis, knn_figure, knn_table
from stabkit.analyze.plots.layer_map import draw_layer_map, layer_map_figure, layer_map_table
from stabkit.analyze.plots.losses import draw_loss, loss_axis, loss_figure, loss_table
from stabkit.analyze.plots.lr_sensitivity import (
    draw_lr_sensitivity,
    lr_sensitivity_figure,
    lr_sensitivity_table,
)
from stabkit.analyze.plots.note_lines import draw_notes
from stabkit.analyze.plots.onset_order import (
    draw_onset_order,
    onset_order_figure,
    onset_order_table,
)
from stabkit.analyze.plots.optimizer import optimizer_figure, optimizer_table
from stabkit.analyze.plots.signals import signals_figure, signals_table
from stabkit.analyze.plots.stability_map import stability_map_figure, stability_map_table
from stabkit.analyze.plots.style import RC, arranged, as_written
from stabkit.rundir import whole


class Plot(NamedTuple):
    """A figure, and the table that it is drawn from. It uses nothing else."""

    about: str
    table: Callable[[Diagnoses], pd.DataFrame]
    figure: Callable[[pd.DataFrame], Figure]


PLOTS = {
    "knn": Plot(
        "accuracy at every evaluation, dips marked, final accuracy beside the names",
        knn_table,
        knn_figure,
    ),
    "loss": Plot("loss over the steps, spikes and departures in bold", loss_table, loss_figure),
    "event-zoom": Plot(
        "gradients, loss and accuracy around the worst event of each kind",
        event_zoom_table,
        event_zoom_figure,
    ),
    "grad-norms": Plot(
        "gradient norm of the first layer above that of the last block, the largest bursts zoomed",
        grad_norms_table,
        grad_norms_figure,
    ),
    "layer-map": Plot(
        "gradient norm of every layer at every step as a heat map, spikes and dips marked",
        layer_map_table,
        layer_map_figure,
    ),
    "onset-order": Plot(
        "which layer spikes first, and how many steps later each other one",
        onset_order_table,
        onset_order_figure,
    ),
    "signals": Plot(
        "every recorded signal of the layers and of the run over its steps, events shaded",
        signals_table,
        signals_figure,
    ),
    "accuracy-table": Plot(
        "every evaluation of every cell, mean and spread over seeds",
        accuracy_table,
        accuracy_table_figure,
    ),
    "freeze-patch": Plot(
        "frozen against learned patch projection, paired by seed and settings",
        freeze_patch_table,
        freeze_patch_figure,
    ),
    "lr-sensitivity": Plot(
        "final accuracy against learning rate, and what a badly chosen rate costs",
        lr_sensitivity_table,
        lr_sensitivity_figure,
    ),
    "optimizer": Plot(
        "curves and final levels by optimizer and learning rate",
        optimizer_table,
        optimizer_figure,
    ),
    "stability-map": Plot(
        "two settings, such as lr and batch, against each other, and where stability ends",
        stability_map_table,
        stability_map_figure,
    ),
}

# Figures that one panel can hold: how it is drawn, and the column whose values are its panels.
PANELS: dict[str, tuple[Callable[[pd.DataFrame, Axes], Axes], str | None]] = {
    "accuracy-table": (draw_accuracy_table, None),
    "grad-norms": (draw_grad_norms, "run"),
    "knn": (draw_knn, "panel"),
    "loss": (draw_loss, "panel"),
    "layer-map": (draw_layer_map, "run"),
    "lr-sensitivity": (draw_lr_sensitivity, None),
    "onset-order": (draw_onset_order, None),
}
AXIS_NAMES: dict[str, Callable[[pd.DataFrame], str]] = {
    "grad-norms": grad_norms_axis,
    "knn": knn_axis,
    "loss": loss_axis,
}


def draw(name: str, runs: Diagnoses, folder: Path) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.csv, which is the table drawn; return their paths.

    A table of accuracies is written as Markdown, LaTeX and HTML as well.

    Raises DoesNotApplyError if the runs hold nothing that the figure shows, or not the contrast
    that it needs.
    """
    table = table_of(name, runs)
    written = save(draw_notes(PLOTS[name].figure(table), runs), table, folder / name)
    return written + (write_texts(table, folder / name) if name == "accuracy-table" else [])


def table_of(name: str, runs: Diagnoses) -> pd.DataFrame:
    """Return what the figure is drawn from.

    Raises ValueError for a name that is no figure, and DoesNotApplyError as `draw` does.
    """
    if name not in PLOTS:
        raise ValueError(f"{name!r} is no figure; there are: {', '.join(PLOTS)}")
    table = PLOTS[name].table(runs)
    if table.empty:
        raise DoesNotApplyError(f"{runs.path}: these runs hold nothing to draw for {name}")
    return table


def figure_of(name: str, runs: Diagnoses, ax: Axes | None = None) -> Figure:
    """Return the figure, or draw it into `ax` and return the figure of `ax`.

    Raises ValueError as `table_of` does, and for an `ax` where the figure has several panels.
    """
    table = table_of(name, runs)
    if ax is None:
        return draw_notes(PLOTS[name].figure(table), runs)
    panel, divided = PANELS.get(name, (None, None))
    if panel is None or (divided and table[divided].nunique() > 1):
        raise ValueError(f"{name} has several panels for these runs: leave out ax")
    panel(table, ax)
    if name in AXIS_NAMES:  # a figure of several panels names its axes once, outside them
        ax.set(xlabel="step", ylabel=AXIS_NAMES[name](table))
    figure = ax.get_figure(root=True)
    assert figure is not None
    place_labels(figure)
    return draw_notes(figure, runs)


def save(figure: Figure, table: pd.DataFrame, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF, and its table as CSV; return their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf, csv = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf", "csv"))
    as_written(figure)
    with mpl.rc_context(RC), arranged(figure) as box:
        with whole(png) as file:
            figure.savefig(file, format="png", dpi=200, bbox_inches=box)
        with whole(pdf) as file:  # same runs, same bytes
            figure.savefig(file, format="pdf", bbox_inches=box, metadata={"CreationDate": None})
    write_csv(table, csv)
    return [png, pdf, csv]
