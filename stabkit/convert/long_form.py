"""Tables with rows of several runs, series or phases, which a column of words names.

`run,step,loss` is split into runs. `step,tag,value` becomes a column for each tag. A column `phase`
of `train` and `val` makes `train/loss` and `val/loss` of a `loss`. What TensorBoard's page saves,
`Wall time,Step,Value`, has its tag in the name of the file: `run-NAME-tag-TAG.csv`.
"""

import re
from collections.abc import Iterable

import numpy as np

from stabkit.convert.columns import Column, FileTable
from stabkit.convert.series import BoolArray, ConvertError, listed, shown
from stabkit.convert.steps import step_column

RUNS = ("run", "runs", "run_id", "run_name", "runid", "experiment", "experiment_name", "exp",
        "exp_name", "trial", "trial_id", "trial_name", "seed", "fold")  # fmt: skip
TAGS = ("tag", "metric", "metric_name", "key", "variable", "series", "name")
VALUES = ("value", "values", "metric_value")
PHASES = ("phase", "split", "mode", "stage", "set", "subset")
_PHASE = re.compile(r"train(ing)?|val(id(ation)?)?|test(ing)?|eval(uation)?|dev", re.IGNORECASE)
MOST_RUNS = 1000


def runs_in(table: FileTable, asked: str | None) -> list[tuple[str, FileTable]]:
    """Return the runs of a table by name; the only one has no name. `asked` is the step's column.

    A column says which run a row is of if its words or numbers stand for RUNS and the steps of each
    begin before another's are half over: in one run that was resumed they do not.
    """
    table = _by_phase(_by_tag(_by_file(table)))
    names = [n for n in [*table.words, *table.columns] if n.lower() in RUNS and n != asked]
    labels = {name: _labels(table, name) for name in names}
    labels = {name: of for name, of in labels.items() if len(set(of) - {""}) > 1}
    if not labels:
        return [("", table)]
    keys = np.array([" ".join(key).strip() for key in zip(*labels.values(), strict=True)])
    different = [key for key in dict.fromkeys(keys.tolist()) if key]
    if len(different) > MOST_RUNS:  # such a column counts rows
        return [("", table)]
    groups = {key: keys == key for key in different}
    if not _side_by_side(table, asked, groups):
        return [("", table)]
    return [(key, _rows_of(table, rows, list(labels))) for key, rows in groups.items()]


def _by_file(table: FileTable) -> FileTable:
    """Return the table of one tag that TensorBoard's page saved, with the tag for a name."""
    if set(table.columns) != {"Wall time", "Step", "Value"}:
        return table
    del table.columns["Wall time"]
    table.left_out["Wall time"] = "the clock"
    if found := re.fullmatch(r"run-.*-tag-(.+)", table.path.stem):
        table.columns[found[1]] = table.columns.pop("Value")
    return table


def _by_tag(table: FileTable) -> FileTable:
    """Return a table of `tag` and `value` as one with a column for each tag."""
    tag = _named(TAGS, table.words)
    value = _named(VALUES, table.columns)
    if tag is None or value is None:
        return table
    labels = np.array(_labels(table, tag))
    cells = table.columns.pop(value)
    del table.words[tag], table.left_out[tag]
    for name in dict.fromkeys(labels[cells.rows].tolist()):
        own = labels[cells.rows] == name
        if name and name not in table.columns:
            table.columns[name] = Column(cells.rows[own], cells.values[own])
    table.notes.append(f"{shown(value)} is a series for each {shown(tag)}")
    return table


def _by_phase(table: FileTable) -> FileTable:
    """Split the columns of a table with rows of training and of evaluation into one for each."""
    phase = _named(PHASES, table.words)
    words = set() if phase is None else set(table.words[phase][1])
    if phase is None or len(words) < 2 or not all(_PHASE.fullmatch(w.strip()) for w in words):
        return table
    labels = np.array(_labels(table, phase))
    del table.words[phase], table.left_out[phase]
    step = step_column(table)
    for name in [name for name in table.columns if name != step and name.lower() not in RUNS]:
        if not step_column(FileTable(table.path, table.num_rows, {name: table.columns[name]})):
            cells = table.columns.pop(name)
            for word in dict.fromkeys(labels[cells.rows].tolist()):
                own = labels[cells.rows] == word
                new = f"{word}/{name}" if word else name
                table.columns[new] = Column(cells.rows[own], cells.values[own])
    table.notes.append(f"{shown(phase)} says what a row is of: {listed(sorted(words))}")
    return table


def _named(known: tuple[str, ...], names: Iterable[str]) -> str | None:
    return next((name for name in names if name.lower() in known), None)


def _labels(table: FileTable, name: str) -> list[str]:
    """Return the word of a column in each row, or an empty text; numbers as `seed 1`."""
    labels = [""] * table.num_rows
    if name in table.words:
        rows, words = table.words[name]
    else:
        rows = table.columns[name].rows
        words = [f"{name} {value:g}" for value in table.columns[name].values]
    for row, word in zip(rows.tolist(), words, strict=True):
        labels[row] = word.strip()
    return labels


def _side_by_side(table: FileTable, asked: str | None, groups: dict[str, BoolArray]) -> bool:
    step = step_column(table, asked)
    if step is None:
        return all(rows.sum() > 1 for rows in groups.values())
    cells = table.columns[step]
    steps = [cells.values[rows[cells.rows]] for rows in groups.values()]
    if not all(of.size > 1 for of in steps):
        return False
    return bool(max(of.min() for of in steps) <= min((of.min() + of.max()) / 2 for of in steps))


def _rows_of(table: FileTable, rows: BoolArray, labels: list[str]) -> FileTable:
    """Return the rows of one run, counted from 0."""
    place = np.cumsum(rows) - 1
    part = FileTable(table.path, int(rows.sum()), notes=list(table.notes))
    part.left_out = {n: why for n, why in table.left_out.items() if n not in labels}
    part.left_out |= dict.fromkeys(labels, "says of which run a row is")
    for name, cells in table.columns.items():
        own = rows[cells.rows]
        if name not in labels and own.any():
            part.columns[name] = Column(place[cells.rows[own]], cells.values[own])
    if not part.columns:
        raise ConvertError(f"{table.path}: a run without numbers")
    return part
