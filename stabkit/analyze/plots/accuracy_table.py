"""Draw the figure `accuracy-table`: all evaluations of all cells, mean and spread over seeds."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabkit.analyze.accuracy_events import final_level
from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots.many import ROWS, joined_notes, say_left_out, without_unfinished
from stabkit.analyze.plots.style import RC, new_figure
from stabkit.analyze.plots.table_text import Cell, as_html, as_latex, as_markdown
from stabkit.rundir import atomic_write

ORDER = ("knn_heldout", "knn_bank", "knn_full", "linear", "finetune")
ROW, LETTER, PAD = 0.24, 0.066, 0.25  # inches: a line, a character, between columns
NOTE = "accuracy, %: mean ± standard deviation over n runs; the best of a column in bold"
NAMES = {"knn_heldout": "kNN held out", "knn_bank": "kNN bank", "knn_full": "kNN full"}


def accuracy_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row per cell and evaluation: cell, metric (with its k if it has one), mean, sd, n.

    Values are in points, over the n runs of a cell; sd is NaN for one run. An evaluation that is
    repeated during training counts by its final level, the median of the last fifth. `unfinished`
    counts the runs that are left out because they have not ended.
    """
    ended, others = runs.that_finished()
    rows = [
        {"cell": cell_label(cell), "run": run.name, "metric": metric, "value": value}
        for cell in group_cells(ended)
        for run in cell.runs
        for metric, value in _measured(run)
    ]
    if not rows:
        return pd.DataFrame()
    values = pd.DataFrame(rows).groupby(["cell", "metric"], sort=False)["value"]
    return (
        pd.DataFrame({"mean": values.mean(), "sd": values.std(ddof=1), "n": values.count()})
        .reset_index()
        .assign(unfinished=others)
    )


def _measured(run: Diagnosis) -> Iterable[tuple[str, float]]:
    for (metric, k), rows in run.evals().groupby(["metric", "k"], observed=True, dropna=False):
        level = 100 * final_level(rows["value"])
        yield (f"{metric}, k = {k:.0f}" if k > 0 else str(metric)), level


def accuracy_table_figure(table: pd.DataFrame) -> Figure:
    """Draw the table, as large as its content; of very many cells only the lowest."""
    shown, left_out = _lowest(table)
    lines = _lines(shown)
    with mpl.rc_context(RC):
        width = sum(_widths(lines))
        figure = new_figure(width, ROW * (len(lines) + 2.4))
        draw_accuracy_table(shown, figure.subplots())
        say_left_out(figure, left_out, without_unfinished(table))
    return figure


def _lowest(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows of the cells that end lowest, and a note on the others, if there are any."""
    cells, first = table["cell"].nunique(), min(table["metric"], key=_rank)
    if cells <= ROWS:
        return table, ""
    ranked = table.assign(other=table["metric"] != first).sort_values(["other", "mean"])
    lowest = ranked["cell"].drop_duplicates()[:ROWS]
    return table[
        table["cell"].isin(lowest)
    ], f"the {ROWS} of {cells:,} cells with the lowest {first}"


def draw_accuracy_table(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw cells down and evaluations across: mean ± standard deviation (n runs)."""
    lines = _lines(table)
    _, cells = table_cells(table)
    widths = _widths(lines)
    ax.axis("off")
    ax.set(xlim=(0, sum(widths)), ylim=(len(lines) + 0.9, -1.2))
    for y, line in enumerate(lines):
        right = widths[0]
        ax.text(0, y, line[0], va="center", fontsize=8)
        for column, (text, width) in enumerate(zip(line[1:], widths[1:], strict=True), start=1):
            right += width
            head = y == 0
            best = not head and cells[y - 1][column][1]
            ax.text(
                right, y - 0.3 if head else y, text.replace(", ", "\n") if head else text,
                ha="right", va="center", fontsize=8, fontweight="bold" if best else "normal",
            )  # fmt: skip
    for rule, weight in ((-1.05, 1.2), (0.4, 0.6), (len(lines) - 0.4, 1.2)):
        ax.plot([0, sum(widths)], [rule, rule], color="black", linewidth=weight)
    ax.text(0, len(lines) + 0.2, NOTE, va="center", fontsize=7, color="0.3")
    return ax


def _lines(table: pd.DataFrame) -> list[list[str]]:
    head, rows = table_cells(table)
    return [head, *([text for text, _ in row] for row in rows)]


def table_cells(table: pd.DataFrame) -> tuple[list[str], list[list[Cell]]]:
    """Return the names of the columns, and rows of texts; of each, whether it is the best."""
    metrics = sorted(dict.fromkeys(table["metric"]), key=_rank)
    best = table.groupby("metric")["mean"].max()
    found: dict[tuple[str, str], Cell] = {
        (row["cell"], row["metric"]): (_text(row), row["mean"] == best[row["metric"]])
        for row in table.to_dict("records")
    }
    none: Cell = ("–", False)  # noqa: RUF001
    rows: list[list[Cell]] = [
        [(cell, False), *(found.get((cell, metric), none) for metric in metrics)]
        for cell in dict.fromkeys(table["cell"])
    ]
    return ["setting", *map(_named, metrics)], rows


def _named(metric: str) -> str:
    """Return the name of an evaluation in words: `kNN held out, k = 20`."""
    name, comma, k = metric.partition(", k = ")
    return f"{NAMES.get(name, name)}{comma}{k}"


def write_texts(table: pd.DataFrame, stem: Path) -> list[Path]:
    """Write the table as Markdown, LaTeX and HTML; return their paths."""
    head, rows = table_cells(table)
    note = joined_notes(NOTE, without_unfinished(table))
    writers = {"md": as_markdown, "tex": as_latex, "html": as_html}
    paths = {stem.with_name(f"{stem.name}.{ending}"): text for ending, text in writers.items()}
    for path, text in paths.items():
        atomic_write(path, text(head, rows, note).encode("utf-8", "backslashreplace"))
    return list(paths)


def _text(row: dict[Any, Any]) -> str:
    spread = "" if math.isnan(row["sd"]) else f" ± {row['sd']:.1f}"
    return f"{row['mean']:.1f}{spread} (n = {row['n']:.0f})"


def _rank(metric: str) -> tuple[int, str, float]:
    """Sort metrics in the order of `ORDER`, then by name, then by k as a number."""
    kind = next((i for i, start in enumerate(ORDER) if metric.startswith(start)), len(ORDER))
    name, _, k = metric.partition(", k = ")
    return kind, name, float(k or 0)


def _widths(lines: list[list[str]]) -> list[float]:
    """Return the column widths in inches. A header has two lines, and the longer one counts."""
    head, *body = lines
    first = LETTER * max(len(line[0]) for line in body)
    rest = [
        max([*map(len, name.split(", ")), *(len(line[i]) for line in body)])
        for i, name in enumerate(head[1:], start=1)
    ]
    others = [LETTER * n + PAD for n in rest]
    return [max(first, 0.055 * len(NOTE) - sum(others)), *others]  # the note fits below
