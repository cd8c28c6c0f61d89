"""Find the column of steps in a table, and mend steps that start again."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stabkit.convert.columns import Column, Table
from stabkit.convert.naming import STEPS
from stabkit.convert.series import ConvertError, IntArray, Log, Series, counted, listed, shown

BoolArray = NDArray[np.bool_]

EPOCHS = ("epoch", "epochs")
WITHIN_EPOCH = ("iter", "iteration", "it", "step", "batch")  # may start again with each epoch


@dataclass(frozen=True)
class Steps:
    """The step of each row, whether it is `known`, and the `columns` that it was made from."""

    steps: IntArray
    known: BoolArray
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def of(self, cells: Column) -> Series:
        """Return the cells of a column at their steps, in the order written."""
        has_step = self.known[cells.rows]
        return Series(self.steps[cells.rows[has_step]], cells.values[has_step])


def step_column(table: Table, asked: str | None = None) -> str | None:
    """Return the column of steps: the one asked for, else the first of STEPS, else an index."""
    if asked is not None:
        return asked if asked in table.columns else None
    lower = {name.lower(): name for name in reversed(table.columns)}
    named = next((lower[name] for name in STEPS if name in lower), None)
    return named if named is not None else _index_column(table)


def _index_column(table: Table) -> str | None:
    """Return the first column if it has no name and counts rows, as pandas writes its index."""
    first = next(iter(table.columns), None)
    if first not in ("", "Unnamed: 0"):
        return None
    values = table.columns[first].values
    counts = values.size == table.num_rows and bool((np.diff(values) == 1).all())
    return first if counts else None


def to_log(table: Table, asked: str | None, row_step: bool, name: str) -> Log:
    """Make a series of every column but the step.

    `asked` is the column of steps, if the user names one; with `row_step` rows are counted. Raises
    ConvertError when no column holds steps.
    """
    steps = find_steps(table, asked, row_step)
    log = Log(name, left_out=dict(table.left_out), notes=[*table.notes, *steps.notes])
    if blank := table.num_rows - int(steps.known.sum()):
        what = " and ".join(shown(column) for column in steps.columns)
        log.notes.append(f"{counted(blank, 'row')} left out that have no {what}")
    given_up = 0
    for column, cells in table.columns.items():
        if column not in steps.columns:
            log.series[column], dropped = after_resumes(column, steps.of(cells))
            given_up += dropped
    if given_up:
        log.notes.append(
            f"{counted(given_up, 'value')} left out of attempts that were given up: the run went "
            "back to an earlier step"
        )
    return log


def find_steps(table: Table, asked: str | None, row_step: bool) -> Steps:
    """Return the step of each row. Raises ConvertError when no column holds steps.

    With `row_step` it is the number of the row, from 0. A step that starts again with each epoch is
    joined with the epoch.
    """
    if row_step:
        every = np.ones(table.num_rows, dtype=bool)
        return Steps(np.arange(table.num_rows), every, (), ("the row is the step, as asked",))
    name = step_column(table, asked)
    if name is None:
        raise ConvertError(
            f"{table.path}: no column of steps; name one by --map COLUMN=step, or count rows by "
            f"--row-step. Its columns: {listed(list(table.columns)) or 'none of numbers'}"
        )
    steps, known = whole_numbers(table, name)
    epoch = _epoch_column(table, name)
    if epoch is None or asked is not None:
        return Steps(steps, known, (name,))
    epochs, has_epoch = whole_numbers(table, epoch)
    if (known & ~has_epoch).any() or not _starts_again(steps[known], epochs[known]):
        return Steps(steps, known, (name,))
    return _joined(table, name, epoch, steps, epochs, known)


def whole_numbers(table: Table, name: str) -> tuple[IntArray, BoolArray]:
    """Return the step of each row, and whether it has one. Raises ConvertError if not whole."""
    cells = table.columns[name]
    bad = ~np.isfinite(cells.values) | (cells.values != np.rint(cells.values))
    bad |= np.abs(cells.values) >= 2**63
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ConvertError(
            f"{table.path}: {shown(name)} = {cells.values[i]:g} in row {cells.rows[i] + 1}: steps "
            "are whole numbers; name another column by --map COLUMN=step, or count rows by "
            "--row-step"
        )
    steps, known = np.zeros(table.num_rows, np.int64), np.zeros(table.num_rows, dtype=bool)
    steps[cells.rows], known[cells.rows] = cells.values.astype(np.int64), True
    return steps, known


def _epoch_column(table: Table, step: str) -> str | None:
    if step.lower() not in WITHIN_EPOCH:
        return None
    lower = {name.lower(): name for name in reversed(table.columns)}
    found = next((lower[name] for name in EPOCHS if name in lower), None)
    if found is None:
        return None
    values = table.columns[found].values
    return found if bool((values == np.rint(values)).all()) else None


def _starts_again(steps: IntArray, epochs: IntArray) -> bool:
    """Return whether every epoch begins at a step below the largest of the epoch before."""
    largest: dict[int, int] = {}
    first: dict[int, int] = {}
    for step, epoch in zip(steps.tolist(), epochs.tolist(), strict=True):
        largest[epoch] = max(largest.get(epoch, step), step)
        first.setdefault(epoch, step)
    follows = [first[b] < largest[a] for a, b in pairwise(sorted(first))]
    return len(follows) > 0 and all(follows)


def _joined(
    table: Table, name: str, epoch: str, steps: IntArray, epochs: IntArray, known: BoolArray
) -> Steps:
    """Return the steps `(epoch - first) * period + step`; an evaluation is at its epoch's end.

    The period is the largest step in any epoch: a log of every tenth iteration does not show the
    last one of each.
    """
    evaluates = table.evaluations & known
    trains = known & ~evaluates
    period = int(steps[trains].max()) if trains.any() else 1
    lowest = int(epochs[known].min())
    joined = np.where(evaluates, (epochs - lowest + 1) * period, (epochs - lowest) * period + steps)
    note = (
        f"{shown(name)} starts again with each {shown(epoch)}: the step is made of both, "
        f"{period:,} to an {shown(epoch)}"
    )
    return Steps(joined, known, (name, epoch), (note,))


def after_resumes(name: str, series: Series) -> tuple[Series, int]:
    """Drop points that a resumed run trained again; return the series and the number dropped.

    When the steps go back, the earlier points from that step on belong to an attempt that was given
    up. A series in no order is not a resumed one: it goes back often, and to steps that it never
    had. Raises ConvertError when the steps start from the beginning several times.
    """
    steps = series.steps
    back = np.flatnonzero(np.diff(steps) < 0) + 1
    if not back.size:
        return series, 0
    twice = np.unique(steps).size < steps.size
    if back.size >= 2 and twice and bool((steps[back] <= steps[0]).all()):
        raise ConvertError(
            f"{shown(name)}: its steps start from the beginning {counted(back.size, 'time')}; name "
            "a column that counts on by --map COLUMN=step, or count rows by --row-step"
        )
    if not twice and back.size > steps.size / 10:
        return series, 0
    kept = np.ones(steps.size, dtype=bool)
    for at in back:
        kept[:at] &= steps[:at] < steps[at]
    return Series(steps[kept], series.values[kept]), int(np.sum(~kept))
