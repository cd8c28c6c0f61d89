"""List every figure of `stabkit analyze --plot NAME`, draw it and write it to disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    grad_norms_panels,
    grad_norms_table,
)
from stabkit.analyze.plots.knn import draw_knn, knn_axis, knn_figure, knn_panels, knn_table
from stabkit.analyze.plots.layer_map import draw_layer_map, layer_map_figure, layer_map_table
from stabkit.analyze.plots.losses import draw_loss, loss_axis, loss_figure, loss_panels, loss_table
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


@dataclass(frozen=True, kw_only=True)
class Plot:
    """All that is known of a figure: to add one, write its module and its record in `PLOTS`."""

    name: str  # of --plot
    title: str  # its first words in the report
    about: str  # what it shows
    look: str  # what to look for, for the gallery
    table: Callable[[Diagnoses], pd.DataFrame]
    figure: Callable[[pd.DataFrame], Figure]  # draws the table, and uses nothing else
    place: int | None  # in the order of the report; None where the report does not show it
    folded: bool = False  # in the report
    of_cells: bool = False  # shows the first `MAX_CELLS` cells
    # A figure that one panel can hold: what draws it, the column whose values are its panels, and
    # the name of the vertical axis, which a figure of several panels says once, outside them.
    panel: Callable[[pd.DataFrame, Axes], Axes] | None = None
    divided: str | None = None
    axis: Callable[[pd.DataFrame], str] | None = None
    # a figure for each panel, so that a narrow page can stack them
    apart: Callable[[pd.DataFrame], list[Figure]] | None = None
    # writes the table as text too, and returns the paths
    texts: Callable[[pd.DataFrame, Path], list[Path]] | None = None


_ALL = (
    Plot(
        name="knn",
        title="Held-out kNN accuracy",
        about="accuracy at every evaluation, dips marked, final accuracy beside the names",
        look="The first figure to look at. A shaded dip is significant where the samples are "
        "known; in a plain log it exceeds the noise.",
        table=knn_table,
        figure=knn_figure,
        place=1,
        panel=draw_knn,
        divided="panel",
        axis=knn_axis,
        apart=knn_panels,
    ),
    Plot(
        name="loss",
        title="Loss",
        about="loss over the steps, spikes and departures in bold",
        look="A dip of accuracy need not show here; a loss that leaves its level does.",
        table=loss_table,
        figure=loss_figure,
        place=2,
        panel=draw_loss,
        divided="panel",
        axis=loss_axis,
        apart=loss_panels,
    ),
    Plot(
        name="event-zoom",
        title="Around the worst event of each kind",
        about="gradients, loss and accuracy around the worst event of each kind",
        look="Read a column downwards: what came first? Here gradients rise, then the loss, then "
        "the accuracy falls.",
        table=event_zoom_table,
        figure=event_zoom_figure,
        place=None,  # every event has a zoom of its own there
    ),
    Plot(
        name="grad-norms",
        title="Gradients: the first layer above the last block",
        about="gradient norm of the first layer above that of the last block, the largest bursts "
        "zoomed",
        look="The first layer against the last: where does the spike begin?",
        table=grad_norms_table,
        figure=grad_norms_figure,
        place=9,
        of_cells=True,
        panel=draw_grad_norms,
        divided="run",
        axis=grad_norms_axis,
        apart=grad_norms_panels,
    ),
    Plot(
        name="layer-map",
        title="Gradients of every layer",
        about="gradient norm of every layer at every step as a heat map, spikes and dips marked",
        look="A burst that walks through layers is a slanted line. Frozen layers are hatched.",
        table=layer_map_table,
        figure=layer_map_figure,
        place=10,
        of_cells=True,
        panel=draw_layer_map,
        divided="run",
    ),
    Plot(
        name="onset-order",
        title="Which layer spikes first",
        about="which layer spikes first, and how many steps later each other one",
        look="Layers far to the left are first. Many bursts are needed to tell.",
        table=onset_order_table,
        figure=onset_order_figure,
        place=8,
        folded=True,
        panel=draw_onset_order,
    ),
    Plot(
        name="signals",
        title="Every recorded signal",
        about="every recorded signal of the layers and of the run over its steps, events shaded",
        look="All that was recorded of a run. Look here when other figures show nothing.",
        table=signals_table,
        figure=signals_figure,
        place=11,
        folded=True,
    ),
    Plot(
        name="accuracy-table",
        title="Every evaluation",
        about="every evaluation of every cell, mean and spread over seeds",
        look="The numbers for a paper or a page.",
        table=accuracy_table,
        figure=accuracy_table_figure,
        place=7,
        panel=draw_accuracy_table,
        texts=write_texts,
    ),
    Plot(
        name="freeze-patch",
        title="Frozen against learned patch projection",
        about="frozen against learned patch projection, paired by seed and settings",
        look="Does freezing the patch projection help, and at which rate?",
        table=freeze_patch_table,
        figure=freeze_patch_figure,
        place=4,
    ),
    Plot(
        name="lr-sensitivity",
        title="What a badly chosen learning rate costs",
        about="final accuracy against learning rate, and what a badly chosen rate costs",
        look="A flat curve forgives a badly chosen rate.",
        table=lr_sensitivity_table,
        figure=lr_sensitivity_figure,
        place=5,
        panel=draw_lr_sensitivity,
    ),
    Plot(
        name="optimizer",
        title="Optimizers",
        about="curves and final levels by optimizer and learning rate",
        look="Does another optimizer dip less, or does it only sag?",
        table=optimizer_table,
        figure=optimizer_figure,
        place=6,
    ),
    Plot(
        name="stability-map",
        title="Where stability ends",
        about="two settings, such as lr and batch, against each other, and where stability ends",
        look="Where does stability end, in two settings?",
        table=stability_map_table,
        figure=stability_map_figure,
        place=3,
    ),
)
PLOTS = {plot.name: plot for plot in _ALL}


def draw(name: str, runs: Diagnoses, folder: Path) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.csv, which is the table drawn; return their paths.

    A table of accuracies is written as Markdown, LaTeX and HTML as well.

    Raises DoesNotApplyError if the runs hold nothing that the figure shows, or not the contrast
    that it needs.
    """
    table = table_of(name, runs)
    plot = PLOTS[name]
    written = save(draw_notes(plot.figure(table), runs), table, folder / name)
    return written + (plot.texts(table, folder / name) if plot.texts else [])


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
    plot = PLOTS[name]
    if ax is None:
        return draw_notes(plot.figure(table), runs)
    if plot.panel is None or (plot.divided and table[plot.divided].nunique() > 1):
        raise ValueError(f"{name} has several panels for these runs: leave out ax")
    plot.panel(table, ax)
    if plot.axis is not None:
        ax.set(xlabel="step", ylabel=plot.axis(table))
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
