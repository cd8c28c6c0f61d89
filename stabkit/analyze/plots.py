"""Every figure of `stabkit analyze --plot NAME`, and how it gets to disk."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from stabkit.analyze.event_zoom_plot import event_zoom_figure, event_zoom_table
from stabkit.analyze.grad_norms_plot import grad_norms_figure, grad_norms_table
from stabkit.analyze.knn_plot import knn_figure, knn_table
from stabkit.analyze.layer_map_plot import layer_map_figure, layer_map_table
from stabkit.analyze.onset_order_plot import onset_order_figure, onset_order_table
from stabkit.analyze.style import RC, as_written
from stabkit.store.reader import Runs


class Plot(NamedTuple):
    """A figure, and the table it is drawn from, from nothing else."""

    about: str
    table: Callable[[Runs], pd.DataFrame]
    figure: Callable[[pd.DataFrame], Figure]


PLOTS = {
    "event-zoom": Plot(
        "gradients, loss and kNN around the deepest dip and the largest gradient burst",
        event_zoom_table,
        event_zoom_figure,
    ),
    "grad-norms": Plot(
        "gradient norm of the first and last layers relative to their medians, whole and zoomed",
        grad_norms_table,
        grad_norms_figure,
    ),
    "knn": Plot("kNN accuracy every few iterations, dips shaded", knn_table, knn_figure),
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
}


def draw(name: str, runs: Runs, folder: Path) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.csv, the very table drawn; returns their paths.

    Raises ValueError when the runs hold nothing that the figure shows.
    """
    table = PLOTS[name].table(runs)
    if table.empty:
        raise ValueError(f"{runs.path}: these runs hold nothing to draw for {name}")
    return save(PLOTS[name].figure(table), table, folder / name)


def save(figure: Figure, table: pd.DataFrame, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF and the table behind it as CSV; returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf, csv = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf", "csv"))
    as_written(figure)
    with mpl.rc_context(RC):
        figure.savefig(png, dpi=200)
        figure.savefig(pdf, metadata={"CreationDate": None})  # same runs, same bytes
    table.to_csv(csv, index=False)
    return [png, pdf, csv]
