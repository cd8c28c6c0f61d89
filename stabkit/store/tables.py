"""The part files of one table as one frame, without the parts and rows that cannot be trusted."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stabkit.rundir import left_out
from stabkit.store.schema import KEYS, SIGNALS, TABLES, VERSION, version_of

ORDER = {"layers": ["step", "depth"], "scalars": ["step"], "evals": ["step"]}
ONCE = {  # what no two rows share
    "layers": ["step", "depth", "layer"],
    "scalars": ["step", "name"],
    "evals": ["step", "metric", "k", "temperature"],
}
AT_WORK_S = 60.0  # a part that is being written now is not half written
NEVER_NULL = {"step", "layer", "depth", "name", "metric", "value", "chance", "n", "k"}


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """All readable parts, in order; `columns` alone when given. Empty when there is no folder.

    A LeftOutWarning names every part that is damaged, foreign, half written or too new, and rows
    that are there twice, of which the first stays.
    """
    frame: pd.DataFrame = stored_table(folder, name, columns).to_pandas()
    if len(ORDER[name]) > 1 or not frame["step"].is_monotonic_increasing:
        frame = frame.sort_values(ORDER[name], kind="stable")
    twice = frame.duplicated([key for key in ONCE[name] if key in frame])
    if twice.any():
        at = frame["step"][twice].iloc[0]
        why = f"of {', '.join(ONCE[name])} seen before; the first is at step {at}"
        left_out(folder, why, f"{twice.sum()} rows")
        frame = frame[~twice]
    return frame


def stored_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The same as stored: pandas tells null, not measured, from NaN no longer.

    Raises KeyError for a column that is none of the table's and in no part of it.
    """
    known = TABLES[name]
    schema = known
    if columns is not None:
        schema = pa.schema([known.field(c) for c in columns if c in known.names])
    further = [c for c in columns or () if c not in known.names]
    if further and name != "layers":
        raise KeyError(f"table {name} has no column {further[0]!r}")
    own = None if columns is None and name == "layers" else further
    tables = [t for part in _parts(folder) if (t := _part(part, schema, own)) is not None]
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
    """Every column of the parts that can be read."""
    names: dict[str, None] = {}
    for part in _parts(folder):
        with suppress(OSError, ValueError, pa.ArrowException), _opened(part) as file:
            names |= dict.fromkeys(pq.read_schema(file).names)
    return list(names)


def _parts(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        left_out(folder, f"not readable ({error.strerror})")
        return []
    parts = []
    for name in names:
        if name.startswith("part-") and name.endswith(".parquet"):
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
    """The columns of `schema`, a signal that the part lacks as nulls; None when it is left out.

    Then those of `further` that the part has; every column of float32 when it is None.
    """
    try:
        with _opened(path) as source, pq.ParquetFile(source, pre_buffer=False) as file:
            found = file.schema_arrow
            problem = _problem(found, schema)
            if problem is None:
                names = [name for name in schema.names if found.get_field_index(name) >= 0]
                names += _signals(found, schema, further)
                table = file.read(names, use_threads=False)
                table.validate(full=True)
                problem = _holes(table)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        problem = f"not readable ({' '.join(str(error).split())})"
    if problem is not None:
        left_out(path, problem)
        return None
    for i, column in enumerate(schema):
        if column.name not in table.column_names:
            table = table.add_column(i, column, pa.nulls(len(table), column.type))
    return table.replace_schema_metadata(None)


def _opened(path: Path) -> Any:
    """Raises OSError for what is no file: of a pipe one would wait for ever."""
    if not path.is_file():
        raise OSError("not a file")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # Arrow opens only what is called by text
        return path.open("rb")
    return pa.OSFile(str(path))


def _signals(found: pa.Schema, schema: pa.Schema, further: Sequence[str] | None) -> list[str]:
    floats = [column.name for column in found if column.type == pa.float32()]
    once = [n for n in floats if found.get_field_index(n) >= 0 and n not in schema.names]
    return once if further is None else [name for name in once if name in further]


def _problem(found: pa.Schema, schema: pa.Schema) -> str | None:
    version = version_of(found)
    if version == 0:
        return "not a stabkit table"
    if version > VERSION:
        return f"schema version {version}; this stabkit reads up to {VERSION}"
    for column in schema:
        if found.get_field_index(column.name) < 0:  # also where there are two
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
