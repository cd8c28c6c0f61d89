"""Find the step of each row of a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stabkit.convert.columns import Column, FileTable
from stabkit.convert.naming import BATCHES, EPOCHS, OPTIMIZER_STEPS, ROWS, STEPS
from stabkit.convert.resumes import given_up_words, without_given_up
from stabkit.convert.series import BoolArray, ConvertError, IntArray, Log, Series, listed, shown
from stabkit.printing import counted

INDEX = ("", "Unnamed: 0")  # pandas' index, as written and as read and written again
WITHIN_EPOCH = ("iter", "iteration", "it", "step", *BATCHES)  # may start again with each epoch


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

    def rows_of(self, cells: Column) -> IntArray:
        return cells.rows[self.known[cells.rows]]


def to_log(table: FileTable, asked: str | None, row_step: bool, name: str) -> Log:
    """Make a series of every column but the step.

    `asked` is the column of steps, if the user names one; with `row_step` rows are counted. Raises
    ConvertError when no column holds steps.
    """
    steps = find_steps(table, asked, row_step)
    log = Log(name, left_out=dict(table.left_out), notes=[*table.notes, *steps.notes])
    if blank := table.num_rows - int(steps.known.sum()):
        what = " and ".join(shown(column) for column in steps.columns)
        log.notes.append(f"{counted(blank, 'row')} left out that have no {what}")
    columns = {n: cells for n, cells in table.columns.items() if n not in steps.columns}
    for column in [column for column, cells in columns.items() if _counts(column, cells, steps)]:
        log.left_out[column or "(no name)"] = "counts the steps or the rows again"
        del columns[column]
    series = {column: steps.of(cells) for column, cells in columns.items()}
    rows = {column: steps.rows_of(cells) for column, cells in columns.items()}
    log.silent = silent(series, steps.steps[steps.known])
    log.series, given_up = without_given_up(series, rows)
    if given_up[0]:
        why = "of attempts that were given up: the run went back to an earlier step"
        log.notes.append(given_up_words(*given_up, why))
    return log


def silent(series: Mapping[str, Series], steps: IntArray) -> tuple[int, int, int] | None:
    """Return first, last and number of the steps whose rows hold no value; None without any."""
    held = [one.steps for one in series.values()]
    without = np.setdiff1d(steps, np.concatenate(held)) if held else steps[:0]
    return (int(without[0]), int(without[-1]), without.size) if without.size else None


def find_steps(table: FileTable, asked: str | None, row_step: bool) -> Steps:
    """Return the step of each row. Raises ConvertError when no column holds steps.

    With `row_step` it is the number of the row, from 0. A step that starts again with each epoch is
    joined with the epoch. If there are only epochs, and they are fractions, their values are
    counted.
    """
    if row_step:
        every = np.ones(table.num_rows, dtype=bool)
        return Steps(np.arange(table.num_rows), every, (), ("the row is the step, as asked",))
    name = step_column(table, asked)
    if name is None:
        raise _no_steps(table)
    if asked is not None:
        return Steps(*whole_numbers(table, name), (name,))
    if name.lower() in EPOCHS and not _is_whole(table.columns[name]):
        return _counted(table, name)
    steps, known, columns = _filled(table, name)
    epoch = _epoch_column(table, name)
    if epoch is not None:
        epochs, has_epoch = whole_numbers(table, epoch)
        if not (known & ~has_epoch).any() and _starts_again(steps[known], epochs[known]):
            return _joined(columns, epoch, steps, epochs, known)
    notes = ("a step is an epoch: the log counts nothing else",) if name.lower() in EPOCHS else ()
    return Steps(steps, known, columns, notes)


def step_column(table: FileTable, asked: str | None = None) -> str | None:
    """Return the column of steps: the one asked for, else the first of STEPS, else an index.

    A column with one value, as a setting printed at the start, counts only if no other is there.
    """
    if asked is not None:
        return asked if asked in table.columns else None
    lower = {name.lower(): name for name in reversed(table.columns)}
    named = [lower[name] for name in STEPS if name in lower]
    counting = [name for name in named if np.ptp(table.columns[name].values) != 0]
    index = [] if named else _index_column(table)
    return next(iter([*counting, *named, *index]), None)


def _index_column(table: FileTable) -> list[str]:
    """Return the first column if it has no name and counts rows, as pandas writes its index."""
    first = next(iter(table.columns), None)
    if first not in INDEX:
        return []
    values = table.columns[first].values
    counts = values.size == table.num_rows and bool((np.diff(values) == 1).all())
    return [first] if counts else []


def _no_steps(table: FileTable) -> ConvertError:
    """Return the error, with the option that would help: a column that only grows, or the row."""
    if not table.columns:
        return ConvertError(
            f"{table.path}: holds no numbers that have names, in columns or as `loss: 0.5` on lines"
            " that name a step; name the file that the training loop logs to, or make a CSV with a "
            "column `step` of it"
        )
    growing = [
        name
        for name, cells in table.columns.items()
        if cells.values.size > 1 and _is_whole(cells) and bool((np.diff(cells.values) > 0).all())
    ]
    option = [f"--map={growing[0]}=step"] if growing else ["--row-step"]
    return ConvertError(
        f"{table.path}: no column of steps; name one by --map COLUMN=step, or count rows by "
        f"--row-step. Its columns: {listed(list(table.columns))}",
        *option,
    )


def _is_whole(cells: Column) -> bool:
    return bool((cells.values == np.rint(cells.values)).all())  # NaN is not; infinite raises later


def whole_numbers(table: FileTable, name: str) -> tuple[IntArray, BoolArray]:
    """Return the step of each row, and whether it has one. Raises ConvertError if not whole."""
    cells = table.columns[name]
    bad = ~np.isfinite(cells.values) | (cells.values != np.rint(cells.values))
    bad |= np.abs(cells.values) >= 2**63
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ConvertError(
            f"{table.path}: {shown(name)} = {cells.values[i]:g} in row {cells.rows[i] + 1}: steps "
            "are whole numbers; name another column by --map COLUMN=step, or count rows by "
            "--row-step",
            "--row-step",
        )
    steps, known = np.zeros(table.num_rows, np.int64), np.zeros(table.num_rows, dtype=bool)
    steps[cells.rows], known[cells.rows] = cells.values.astype(np.int64), True
    return steps, known


def _filled(table: FileTable, name: str) -> tuple[IntArray, BoolArray, tuple[str, ...]]:
    """Return the steps; rows without one take it from another column that counts the same.

    Two columns count the same if they agree where both are, and go back together no more often than
    one of them: nanoGPT prints `step 250: val loss …` between lines of `iter 249: loss …`.
    """
    steps, known = whole_numbers(table, name)
    columns = [name]
    for other in table.columns:
        if other.lower() not in OPTIMIZER_STEPS or other == name or known.all():
            continue
        if not _is_whole(table.columns[other]):
            continue
        more, has_more = whole_numbers(table, other)
        merged = np.where(known, steps, more)
        agree = (steps == more)[known & has_more].all()
        most = max(_backs(steps[known]), _backs(more[has_more]))
        if agree and _backs(merged[known | has_more]) <= most:
            steps, known = merged, known | has_more
            columns.append(other)
    return steps, known, tuple(columns)


def _backs(steps: IntArray) -> int:
    return int(np.sum(np.diff(steps) < 0))


def _counts(column: str, cells: Column, steps: Steps) -> bool:
    """Return whether a column only counts what the step counts, or the rows."""
    if column in INDEX:
        return bool((np.diff(cells.values) == 1).all())
    if column.lower() not in (*OPTIMIZER_STEPS, ROWS):
        return False
    same = np.array_equal(steps.of(cells).steps, cells.values[steps.known[cells.rows]])
    return column.lower() == ROWS or same


def _counted(table: FileTable, name: str) -> Steps:
    """Return the number of each value of a fractional epoch, in order, as its step."""
    cells = table.columns[name]
    if not np.isfinite(cells.values).all():
        whole_numbers(table, name)  # refuses it, and names the row
    values, number = np.unique(cells.values, return_inverse=True)
    steps, known = np.zeros(table.num_rows, np.int64), np.zeros(table.num_rows, dtype=bool)
    steps[cells.rows], known[cells.rows] = number.reshape(-1), True
    note = (
        f"no column of steps, and {shown(name)} is a fraction: its {values.size:,} values are "
        f"counted, so step 0 is {shown(name)} {values[0]:g} and step {values.size - 1:,} is "
        f"{values[-1]:g}"
    )
    return Steps(steps, known, (name,), (note,))


def _epoch_column(table: FileTable, step: str) -> str | None:
    if step.lower() not in WITHIN_EPOCH:
        return None
    lower = {name.lower(): name for name in reversed(table.columns)}
    found = next((lower[name] for name in EPOCHS if name in lower), None)
    return found if found is not None and _is_whole(table.columns[found]) else None


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
    columns: tuple[str, ...], epoch: str, steps: IntArray, epochs: IntArray, known: BoolArray
) -> Steps:
    """Return the steps `(epoch - first) * period + step`.

    The period is the number of steps in an epoch. It is estimated by the largest step in any epoch,
    because a log of every tenth iteration does not show the last one. If the steps start at 0, the
    usual distance between two of them is added.
    """
    period = int(steps[known].max())
    if not steps[known].min():
        ahead = np.diff(steps[known])
        period += int(np.median(ahead[ahead > 0])) if (ahead > 0).any() else 1
    lowest = int(epochs[known].min())
    note = (
        f"{shown(columns[0])} starts again with each {shown(epoch)}: the step is made of both, "
        f"{period:,} to an {shown(epoch)}"
    )
    return Steps((epochs - lowest) * period + steps, known, (*columns, epoch), (note,))
