"""Make the zoomable charts of the report: data as JSON, which plotly draws inside the page."""

import html
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from stabkit.analyze.cells import group_cells, run_label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots.curves import accuracy_axis, gradient_curves, loss_curve, main_loss
from stabkit.analyze.plots.grad_norms import MAX_CELLS
from stabkit.analyze.plots.many import ONE_BY_ONE, WORST
from stabkit.analyze.series import METRIC
from stabkit.analyze.summary import run_table
from stabkit.analyze.text import counted
from stabkit.analyze.verdict import worst_first

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
DASHES = ("solid", "dash", "dot", "dashdot")
MAX_POINTS = 4000  # per line; a screen has fewer columns


@dataclass(frozen=True)
class Chart:
    """A chart. `data` is JSON for `Plotly.newPlot`; `about` says in words what is drawn."""

    title: str
    about: str
    data: str


def charts(runs: Diagnoses) -> list[Chart]:
    """Return charts of accuracy and loss of all runs, and of the gradients of one run a cell.

    Of very many runs, accuracy and loss of the worst are drawn, and the titles say so.
    """
    cells, some = group_cells(runs), ""
    named = [(run_label(cell, run), run) for cell in cells for run in cell.runs]
    if len(named) > ONE_BY_ONE:
        worst = set(worst_first(run_table(runs))["run"][:WORST])
        named = [(label, run) for label, run in named if run.name in worst]
        some = f", the {len(named)} of {len(runs):,} runs that fared worst"
    accuracy = [(name, run.evals(run.metric)) for name, run in named]
    loss = [(name, loss_curve(run).reset_index()) for name, run in named]
    metrics = [accuracy_axis(run.metric) for _, run in named if run.judged.evals]
    losses = [main_loss(run) or "loss" for _, run in named]
    title = "Accuracy" if set(metrics) - {accuracy_axis(METRIC)} else "Held-out kNN accuracy"
    found = [
        _chart(f"{title}{some}", " or ".join(dict.fromkeys(metrics)), accuracy, _of_runs),
        _chart(f"Loss{some}", " or ".join(dict.fromkeys(losses)), loss, _of_runs),
    ]
    for cell in cells[:MAX_CELLS]:
        run = cell.runs[0]
        norms = gradient_curves(run).sort_values("depth", kind="stable")
        lines = [
            (str(layer), rows.rename(columns={"value": "norm", "relative": "value"}))
            for layer, rows in norms.groupby("layer", sort=False)
        ]
        of = "" if run.norms else " of each layer"
        title = f"Gradient norm{of} over its median: {run_label(cell, run)}"
        found.append(_chart(title, "relative norm", lines, _of_layers, "log"))
    return [chart for chart in found if chart is not None]


def thin(step: Any, value: Any, most: int = MAX_POINTS) -> tuple[Any, Any]:
    """Return the lowest and highest point of each of `most` / 2 stretches; a short series whole."""
    if len(step) <= most:
        return step, value
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(step)), most // 2):
        finite = stretch[np.isfinite(value[stretch])]
        if finite.size:
            kept |= {int(finite[np.argmin(value[finite])]), int(finite[np.argmax(value[finite])])}
        else:
            kept.add(int(stretch[0]))  # keep the gap visible
    chosen = sorted(kept)
    return step[chosen], value[chosen]


def plotly_script() -> str:
    """Return plotly's JavaScript (MIT license) from its Python package."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _of_runs(count: int) -> list[dict[str, str]]:
    """Return line styles that differ by hue, then by dashes (Okabe and Ito's colors)."""
    return [
        {"color": COLORS[i % len(COLORS)], "dash": DASHES[i // len(COLORS) % len(DASHES)]}
        for i in range(count)
    ]


def _of_layers(count: int) -> list[dict[str, str]]:
    """Return colors in depth order. The ends of the map are left out: they fade into the page."""
    places = np.linspace(0.25, 0.85, count)
    return [{"color": to_hex(color)} for color in mpl.colormaps["viridis"](places)]


def _chart(
    title: str,
    measure: str,
    lines: Iterable[tuple[str, pd.DataFrame]],
    looks: Callable[[int], list[dict[str, str]]],
    scale: str = "linear",
) -> Chart | None:
    drawn = [(name, rows) for name, rows in lines if len(rows)]
    if not drawn:
        return None
    traces = []
    for (name, rows), look in zip(drawn, looks(len(drawn)), strict=True):
        step, value = thin(rows["step"].to_numpy(), rows["value"].to_numpy())
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": html.escape(name),  # plotly reads its texts as HTML
                "x": step.tolist(),
                "y": [float(f"{v:.5g}") if math.isfinite(v) else None for v in value.tolist()],
                "line": {"width": 1.5, **look},
            }
        )
    layout = {
        "xaxis": {"title": {"text": "step", "standoff": 4}},
        "yaxis": {"title": {"text": html.escape(measure)}, "type": scale},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"t": 40, "r": 10, "l": 60, "b": 40},
    }
    content = json.dumps({"data": traces, "layout": layout}, allow_nan=False)
    about = f"{title}: {counted(len(drawn), 'line')}, over steps."
    return Chart(title, about, content)
