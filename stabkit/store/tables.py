"""Read the part files of a table as one frame, without parts and rows that cannot be trusted."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa

from stabkit.printing import counted
from stabkit.rundir import left_out
from stabkit.store.parts import open_part
from stabkit.store.schema import KEYS, SIGNALS, TABLES, VERSION, version_of

ORDER = {"layers": ["step", "depth"], "scalars": ["step"], "evals": ["step"]}
ONCE = {  # keys that no two rows share
    "layers": ["step", "depth", "layer"],
    "scalars": ["step", "name"],
    "evals": ["step", "metric", "k", "temperature"],
}
AT_WORK_S = 60.0  # age below which a temporary file is being written, not left behind
NEVER_NULL = {"step", "layer", "depth", "name", "metric", "value", "chance", "n", "k"}


def read_table(
    folder: Path, name: str, columns: Sequence[str] | None = None, until: str | None = None
) -> pd.DataFrame:
    """Read all readable parts, in order; only `columns`, if given. Empty if there is no folder.

    `until` is the name of the last part to read, from `last_part`; later parts are not read.

    A LeftOutWarning names every part that is damaged, foreign, half written or too new. It also
    names rows that are there twice, of which the first is kept.
    """
    frame: pd.DataFrame = stored_table(folder, name, columns, until).to_pandas()
    if len(ORDER[name]) > 1 or not frame["step"].is_monotonic_increasing:
        frame = frame.sort_values(ORDER[name], kind="stable")
    twice = frame.duplicated([key for key in ONCE[name] if key in frame])
    if twice.any():
        at = frame["step"][twice].iloc[0]
        why = f"of {', '.join(ONCE[name])} seen before; the first is at step {at}"
        left_out(folder, why, counted(int(twice.sum()), "row"))
        frame = frame[~twice]
    return frame


def stored_table(
    folder: Path, name: str, columns: Sequence[str] | None = None, until: str | None = None
) -> pa.Table:
    """Read the table as Arrow, where null (not measured) differs from NaN; pandas merges the two.

    Raises KeyError for a column that neither the table nor any of its parts has.
    """
    known = TABLES[name]
    schema = known
    if columns is not None:
        schema = pa.schema([known.field(c) for c in columns if c in known.names])
    further = [c for c in columns or () if c not in known.names]
    if further and name != "layers":
        raise KeyError(f"table {name} has no column {further[0]!r}")
    own = None if columns is None and name == "layers" else further
    tables = _read_parts(folder, schema, own, until)
    whole = pa.concat_tables([schema.empty_table(), *tables], promote_options="default")
    absent = [c for c in further if c not in whole.column_names]
    if absent and tables:
        recorded = ", ".join(c for c in _further(folder) if c not in KEYS)
        raise KeyError(
            f"{folder}: no signal {absent[0]!r} was recorded; those that were: {recorded}"
        )
    for column in absent:
        whole = whole.append_column(column, pa.nulls(len(whole), pa.float32()))
    return (whole if columns is None else whole.select(list(columns))).unify_dictionaries()


def _further(folder: Path) -> list[str]:
    """Return every column of the parts that can be read."""
    names: dict[str, None] = {}
    for part in _parts(folder):
        with suppress(OSError, ValueError, pa.ArrowException):
            names |= dict.fromkeys(open_part(part).schema_arrow.names)
    return list(names)


def last_part(folder: Path) -> str:
    """Return the name of the last part now; empty if there is none. Names grow with time."""
    try:
        return max((name for name in os.listdir(folder) if _is_part(name)), default="")
    except OSError:
        return ""


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def _read_parts(
    folder: Path, schema: pa.Schema, further: Sequence[str] | None, until: str | None
) -> list[pa.Table]:
    """Read the parts of one listing of the table.

    A resumed run rewrites and deletes parts. If a part goes away while it is read, that is no
    damage: the table is listed again, up to five times.
    """
    for last in (False,) * 4 + (True,):
        parts = [part for part in _parts(folder) if until is None or part.name <= until]
        found = [_part(part, schema, further) for part in parts]
        gone = [part for part in parts if not os.path.lexists(part)]
        if last and gone:
            left_out(gone[0], "moved or deleted while it was read")
        if last or not gone:
            break
    return [table for table in found if table is not None]


def _parts(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        if not folder.parent.exists():
            left_out(folder.parent, "moved or deleted while it was read")
        return []
    except OSError as error:
        left_out(folder, f"not readable ({error.strerror})")
        return []
    parts = []
    for name in names:
        if _is_part(name):
            parts.append(folder / name)
        elif name.endswith(".tmp"):
            if _age(folder / name) > AT_WORK_S:
                left_out(folder / name, "half written")
        elif not name.startswith("."):
            left_out(folder / name, "not a part of the table")
    return parts


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _part(path: Path, schema: pa.Schema, further: Sequence[str] | None) -> pa.Table | None:
    """Read the columns of `schema` and those of `further` in the part; None if it is left out.

    A signal of `schema` that the part lacks is all null. `further` None means every float32 column.
    """
    try:
        with open_part(path) as file:
            found = file.schema_arrow
            problem = problem_of(found, schema)
            if problem is None:
                names = [name for name in schema.names if found.get_field_index(name) >= 0]
                names += _signals(found, schema, further)
                table = file.read(names, use_threads=False)
                table.validate(full=True)
                problem = _holes(table)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        problem = f"not readable ({' '.join(str(error).split())})"
    if problem is not None:
        if os.path.lexists(path):
            left_out(path, problem)
        return None
    for i, column in enumerate(schema):
        if column.name not in table.column_names:
            table = table.add_column(i, column, pa.nulls(len(table), column.type))
    return table.replace_schema_metadata(None)


def _signals(found: pa.Schema, schema: pa.Schema, further: Sequence[str] | None) -> list[str]:
    floats = [column.name for column in found if column.type == pa.float32()]
    once = [n for n in floats if found.get_field_index(n) >= 0 and n not in schema.names]
    return once if further is None else [name for name in once if name in further]


def problem_of(found: pa.Schema, schema: pa.Schema) -> str | None:
    """Return why a part with these columns does not fit the table `schema`; None if it fits."""
    version = version_of(found)
    if version == 0:
        return "not a stabkit table"
    if version > VERSION:
        return f"schema version {version}; this stabkit reads up to {VERSION}"
    for column in schema:
        if found.get_field_index(column.name) < 0:  # also if two columns have this name
            if column.name not in SIGNALS:
                return f"it has no column {column.name}"
        elif (kind := found.field(column.name).type) != column.type:
            return f"column {column.name} is {kind}, not {column.type}"
    return None


def _holes(table: pa.Table) -> str | None:
    for name in table.column_names:
        if name in NEVER_NULL and table[name].null_count:
            return f"column {name} has no value in {table[name].null_count} of {len(table)} rows"
    return None
