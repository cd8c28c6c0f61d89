"""Tell two sets of runs cell by cell, as a table of text."""

from typing import Any

import pandas as pd

from stabkit.analyze.cells import group_cells, label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.matching import cells_of
from stabkit.analyze.scores import is_unstable
from stabkit.analyze.text import aligned


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
                f"{means[0]:.1f}",
                f"{means[1]:.1f}",
                f"{means[1] - means[0]:+.1f}",
                f"{one['dips'].sum()} | {two['dips'].sum()}",
                f"{one['lost_steps'].sum()} | {two['lost_steps'].sum()}",
                f"{is_unstable(one).sum()} | {is_unstable(two).sum()}",
            ]
        )
    return aligned(lines)


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
