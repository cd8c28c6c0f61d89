"""Show two sets of runs cell by cell, as a table of text."""

import math
from typing import Any

import pandas as pd

from stabkit.analyze.cells import group_cells, label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.matching import cells_of
from stabkit.analyze.text import aligned
from stabkit.analyze.verdict import is_unstable


def cell_table(
    first: Diagnoses, second: Diagnoses, kept: list[pd.DataFrame], settings: list[str]
) -> str:
    """Return a table of the cells: level, dips, steps in dips, each as first | second."""
    told = _telling(first, second, settings)
    lines = [["cell", "runs", "level, %", "", "difference", "dips", "in dips", "unstable"]]
    cells = dict.fromkeys(cells_of(kept[0], settings))
    for cell in sorted(cells, key=_order) if settings else [()]:
        one, two = (_of_cell(rows, settings, cell) for rows in kept)
        named = [label(k, v) for k, v in zip(settings, cell, strict=True) if k in told]
        means = [rows["level"].mean() for rows in (one, two)]
        lines.append(
            [
                ", ".join(named) or "all",
                f"{len(one)} | {len(two)}",
                *(_points(mean) for mean in means),
                _points(means[1] - means[0], "+.1f"),
                " | ".join(_sum(rows, "dips") for rows in (one, two)),
                " | ".join(_sum(rows, "lost_steps") for rows in (one, two)),
                f"{is_unstable(one).sum()} | {is_unstable(two).sum()}",
            ]
        )
    return aligned(lines)


def _points(value: float, form: str = ".1f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _sum(rows: pd.DataFrame, column: str) -> str:
    """Return a sum over the runs in which a dip would have been found; `-` without such a run."""
    seen = rows.loc[rows["on_accuracy"], column]
    return str(seen.sum()) if len(seen) else "-"


def _telling(first: Diagnoses, second: Diagnoses, settings: list[str]) -> set[str]:
    """Return the settings that name a cell, without those that follow from another."""
    named = (cell.settings for runs in (first, second) for cell in group_cells(runs))
    return {key for cell in named for key in cell} & set(settings)


def _of_cell(rows: pd.DataFrame, settings: list[str], cell: tuple[Any, ...]) -> pd.DataFrame:
    if not settings:
        return rows
    return rows[[value == cell for value in cells_of(rows, settings)]]


def _order(cell: tuple[Any, ...]) -> list[tuple[int, float, str]]:
    return [(0, float(v), "") if isinstance(v, (int, float)) else (1, 0.0, str(v)) for v in cell]
