"""CSV, Parquet and JSON files -> columns of numbers -> series over a column of steps."""

import codecs
import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stabkit.convert.records import EVALUATES, flat, is_json, json_records
from stabkit.convert.series import (
    ConvertError,
    FloatArray,
    IntArray,
    counted,
    shown,
)
from stabkit.convert.text import is_log_text, text_records
from stabkit.convert.wandb_file import MAGIC, wandb_records

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Column:
    """The cells that are not blank: `rows` and `values`, [cells]."""

    rows: IntArray
    values: FloatArray


@dataclass
class Table:
    path: Path
    num_rows: int
    columns: dict[str, Column] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    evaluations: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """[num_rows], whether the log says that a row is of an evaluation, not of training."""

    def __post_init__(self) -> None:
        if self.evaluations.size != self.num_rows:
            self.evaluations = np.zeros(self.num_rows, dtype=bool)


def read_table(path: Path) -> Table:
    """By what the file holds, whatever its name. Raises ConvertError when it is no table."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if not start.strip():
        raise ConvertError(f"{path}: empty")
    try:
        if start[:4] == b"PAR1":
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                return _from_arrow(path, file.read())
        if start[: len(MAGIC)] == MAGIC:
            notes: list[str] = []
            table = _from_records(path, wandb_records(path, notes))
            table.notes += notes
            return table
        if not _is_text(path):
            raise ConvertError(f"{path}: neither text (UTF-8) nor Parquet nor TensorBoard events")
        notes = []
        if is_json(start):
            table = _from_records(path, json_records(path, notes))
        elif is_log_text(path):
            table = _from_records(path, text_records(path, notes))
        else:
            table = _read_csv(path, start)
        table.notes += notes
        return table
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ConvertError(f"{path}: not readable ({shown(str(error), 300)})") from None


def _read_csv(path: Path, start: bytes) -> Table:
    header = start.split(b"\n", 1)[0]
    delimiter = max(b",;\t", key=header.count)  # the comma, where none is there
    skipped: list[int] = []

    def skip(row: Any) -> str:
        skipped.append(row.number or 0)
        return "skip"

    table = pa_csv.read_csv(
        path,
        # one thread: only then rows that are skipped have a number
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=1 << 24),
        parse_options=pa_csv.ParseOptions(
            delimiter=chr(delimiter), newlines_in_values=True, invalid_row_handler=skip
        ),
        # all as text: a type guessed from the first rows would refuse the later ones
        convert_options=pa_csv.ConvertOptions(
            null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True,
            column_types=dict.fromkeys(_header(path, chr(delimiter)), pa.string()),
        ),
    )  # fmt: skip
    result = _from_arrow(path, table)
    if skipped:
        result.notes.append(
            f"{counted(len(skipped), 'row')} left out that have too few or too many cells (the "
            f"first: row {skipped[0]})"
        )
    return result


def _header(path: Path, delimiter: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            return next(csv.reader(file, delimiter=delimiter), [])
        except csv.Error as error:
            raise ConvertError(f"{path}: row 1, of names: {error}") from None


def _is_text(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                if b"\0" in block:
                    return False
                decoder.decode(block)
    except UnicodeDecodeError:
        return False
    return True


def _from_arrow(path: Path, table: pa.Table) -> Table:
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    result = Table(path, table.num_rows)
    for padded, data in zip(table.column_names, table.columns, strict=True):
        name = padded.strip()
        if name in result.columns or name in result.left_out:
            result.notes.append(f"{shown(name)}: a second column of this name was left out")
            continue
        _add(result, name, _cells(data.combine_chunks()))
    return result


def _cells(data: Any) -> tuple[IntArray, list[Any] | FloatArray] | str:
    if isinstance(data, pa.ChunkedArray):
        data = pa.concat_arrays(data.chunks) if data.num_chunks else pa.nulls(0)
    if pa.types.is_dictionary(data.type):
        data = data.dictionary_decode()
    rows = np.flatnonzero(data.is_valid().to_numpy(zero_copy_only=False))
    data = data.drop_null()
    if pa.types.is_boolean(data.type):
        data = data.cast(pa.int8())
    if pa.types.is_null(data.type):
        return "blank throughout"
    types = pa.types
    if types.is_integer(data.type) or types.is_floating(data.type) or types.is_decimal(data.type):
        return rows, np.asarray(pc.cast(data, pa.float64(), safe=False))
    if types.is_string(data.type) or types.is_large_string(data.type):
        try:
            return rows, np.asarray(pc.cast(data, pa.float64()))
        except pa.ArrowInvalid:
            return rows, data.to_pylist()
    return f"{data.type}, not numbers"


def _add(table: Table, name: str, cells: tuple[IntArray, list[Any] | FloatArray] | str) -> None:
    """Put a column in as far as it holds numbers."""
    if isinstance(cells, str):
        table.left_out[name] = cells
        return
    rows, raw = cells
    if not isinstance(raw, np.ndarray):
        numbers = [_number(cell) for cell in raw]
        good = np.array([number is not None for number in numbers], dtype=bool)
        first = next((cell for cell, ok in zip(raw, good, strict=True) if not ok), None)
        if not good.all():
            what = f"as {shown(str(first), 40)!r}"
            if not good.any():
                table.left_out[name] = f"not numbers, {what}"
                return
            bad = int(np.sum(~good))
            table.notes.append(f"{shown(name)}: {counted(bad, 'cell')} not numbers, {what}")
        rows, raw = rows[good], np.array([n for n in numbers if n is not None], np.float64)
    if not rows.size:
        table.left_out[name] = "blank throughout"
        return
    table.columns[name] = Column(rows.astype(np.int64), raw)


def _number(cell: Any) -> float | None:
    """Of a JSON value or a CSV cell, spelled as Python, JavaScript or R spell it."""
    if not isinstance(cell, (int, float, str)):
        return None
    if isinstance(cell, str) and cell.strip().lower() in ("true", "false"):
        return float(cell.strip().lower() == "true")
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None


def _from_records(path: Path, records: Iterable[Mapping[str, Any]]) -> Table:
    """Nested mappings become dotted names; null is a blank."""
    cells: dict[str, tuple[list[int], list[Any]]] = {}
    evaluates = []
    for row, record in enumerate(records):
        evaluates.append(bool(record.get(EVALUATES)))
        for name, value in flat(record, ""):
            if value is not None:
                rows, values = cells.setdefault(name, ([], []))
                rows.append(row)
                values.append(value)
    cells.pop(EVALUATES, None)
    table = Table(path, len(evaluates), evaluations=np.array(evaluates, dtype=bool))
    for name, (rows, values) in cells.items():
        _add(table, name, (np.array(rows, np.int64), values))
    return table
