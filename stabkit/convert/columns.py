"""Columns of numbers: what a table holds, whatever file it came from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.convert.series import FloatArray, IntArray, shown
from stabkit.convert.spelling import PERCENT, numbers_of
from stabkit.printing import counted
from stabkit.store.accuracies import is_accuracy
from stabkit.store.names import is_gradient_norm, words

Words = tuple[IntArray, list[str]]  # rows and texts of the cells that are not blank
Cells = tuple[IntArray, list[Any] | FloatArray]  # rows and values of the cells that are not blank


@dataclass(frozen=True)
class Column:
    """The cells that are not blank: `rows` and `values`, [cells]."""

    rows: IntArray
    values: FloatArray


@dataclass
class FileTable:
    """The columns of one file, and what of it was left out and why.

    `words` are columns of text that may say of which run, series or phase a row is.
    """

    path: Path
    num_rows: int
    columns: dict[str, Column] = field(default_factory=dict)
    words: dict[str, Words] = field(default_factory=dict)
    decimal_comma: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def add_column(table: FileTable, name: str, cells: Cells | str) -> None:
    """Add the numbers of a column; note the cells that are none.

    A text in place of cells says why the column is left out.
    """
    if isinstance(cells, str):
        table.left_out[name] = cells
        return
    rows, raw = cells
    if not isinstance(raw, np.ndarray):
        numbers, remarks = numbers_of(raw, table.decimal_comma)
        told = [remark for remark in remarks if remark != PERCENT or _may_be_judged(name)]
        table.notes += [f"{shown(name)}: {remark}" for remark in told]
        good = np.array([number is not None for number in numbers], dtype=bool)
        first = next((cell for cell, ok in zip(raw, good, strict=True) if not ok), None)
        if not good.all():
            what = f"as {shown(str(first), 40)!r}"
            if not good.any():
                table.left_out[name] = f"not numbers, {what}"
                table.words[name] = rows.astype(np.int64), [str(cell) for cell in raw]
                return
            bad = int(np.sum(~good))
            table.notes.append(f"{shown(name)}: {counted(bad, 'cell')} not numbers, {what}")
        rows, raw = rows[good], np.array([n for n in numbers if n is not None], np.float64)
    if not rows.size:
        table.left_out[name] = "blank throughout"
        return
    table.columns[name] = Column(rows.astype(np.int64), raw)


def _may_be_judged(name: str) -> bool:
    """Return whether a verdict may depend on a series; on a share of the peak speed none does."""
    is_loss = any(word.endswith("loss") for word in words(name))
    return is_loss or is_accuracy(name) or is_gradient_norm(name)
