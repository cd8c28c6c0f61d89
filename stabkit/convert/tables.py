"""Files as tables: CSV, Parquet, JSON, text logs and `.wandb` files -> columns of numbers."""

import codecs
import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from stabkit.convert.columns import Cells, Table, add_column, is_number
from stabkit.convert.one_axis import on_one_axis
from stabkit.convert.records import flat, is_json, json_records
from stabkit.convert.series import ConvertError, counted, shown
from stabkit.convert.text import is_log_text, text_records
from stabkit.convert.wandb_file import MAGIC, wandb_records


def read_table(path: Path, row_step: bool = False) -> Table:
    """Read a file by what it holds, whatever its name. Raises ConvertError when it is no table.

    With `row_step` a line of a text log is a row also if it names no step.
    """
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if not start.strip():
        raise ConvertError(f"{path}: empty")
    try:
        return _read(path, start, row_step)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ConvertError(
            f"{path}: not readable as a table or as lines of `name: number` "
            f"({shown(str(error), 300)})"
        ) from None


def _read(path: Path, start: bytes, row_step: bool) -> Table:
    """Choose the reader by the first bytes, `start`."""
    if start.startswith(b"PAR1"):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return _from_arrow(path, file.read())
    notes: list[str] = []
    if start.startswith(MAGIC):
        table = table_of(path, wandb_records(path, notes), notes)
    elif not _is_text(path):
        raise ConvertError(f"{path}: neither text (UTF-8) nor Parquet nor TensorBoard events")
    elif is_json(start):
        table = table_of(path, json_records(path, notes), notes)
    elif is_log_text(path):
        table = table_of(path, text_records(path, notes, row_step), notes)
    else:
        table = _read_csv(path, start)
    table.notes += notes
    return table


def _read_csv(path: Path, start: bytes) -> Table:
    header = start.split(b"\n", 1)[0]
    delimiter = max(b",;\t", key=header.count)  # a comma if there is none of them
    source: Path | io.BytesIO = path
    if not header.count(delimiter) and len(header.split()) > 1:
        # columns between blanks, as numpy.savetxt writes them, with its `# ` before the names
        lines = path.read_text(encoding="utf-8-sig").removeprefix("# ").splitlines()
        source = io.BytesIO("\n".join(",".join(line.split()) for line in lines).encode())
    names = _header(source, chr(delimiter))
    numbers_only = _names_of_numbers(path, names)
    skipped: list[int] = []

    def skip(row: Any) -> str:
        skipped.append(row.number or 0)
        return "skip"

    table = pa_csv.read_csv(
        source,
        # one thread: only then skipped rows have a number
        read_options=pa_csv.ReadOptions(
            use_threads=False, block_size=1 << 24, column_names=numbers_only
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=chr(delimiter), newlines_in_values=True, invalid_row_handler=skip
        ),
        # all as text: Arrow guesses types from the first rows and would refuse later ones
        convert_options=pa_csv.ConvertOptions(
            null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True,
            column_types=dict.fromkeys(numbers_only or names, pa.string()),
        ),
    )  # fmt: skip
    result = _from_arrow(path, table)
    if skipped:
        result.notes.append(
            f"{counted(len(skipped), 'row')} left out that have too few or too many cells (the "
            f"first: row {skipped[0]})"
        )
    return result


def _header(source: Path | io.BytesIO, delimiter: str) -> list[str]:
    """Return the cells of the first row."""
    if isinstance(source, io.BytesIO):
        return source.getvalue().decode().split("\n", 1)[0].split(delimiter)
    with source.open(encoding="utf-8-sig", newline="") as file:
        try:
            return next(csv.reader(file, delimiter=delimiter), [])
        except csv.Error as error:
            raise ConvertError(f"{source}: row 1, of names: {error}") from None


def _names_of_numbers(path: Path, header: list[str]) -> list[str] | None:
    """Return names for the columns if the first row has none: the file's own, or their numbers."""
    if not header or not all(is_number(cell) for cell in header):
        return None
    return [path.stem] if len(header) == 1 else [f"column {i + 1}" for i in range(len(header))]


def _is_text(path: Path) -> bool:
    """Return whether a file is text; a few bytes of it may be of another encoding than UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    wrong = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if b"\0" in block:
                return False
            wrong += decoder.decode(block).count("\ufffd")
            size += len(block)
    return 100 * wrong <= size


def _from_arrow(path: Path, table: pa.Table) -> Table:
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    result = Table(path, table.num_rows)
    for padded, data in zip(table.column_names, table.columns, strict=True):
        name = padded.strip()
        if name in result.columns or name in result.left_out:
            result.notes.append(f"{shown(name)}: a second column of this name was left out")
            continue
        add_column(result, name, _cells(data.combine_chunks()))
    return result


def _cells(data: Any) -> Cells | str:
    """Return the cells that are not blank, or why the column holds no numbers."""
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


def table_of(path: Path, records: Iterable[Mapping[str, Any]], notes: list[str]) -> Table:
    """Return the records as columns: nested names are joined by dots, null is a blank."""
    cells: dict[str, tuple[list[int], list[Any]]] = {}
    count = 0
    for row, record in enumerate(on_one_axis(records, notes)):
        count = row + 1
        for name, value in flat(record, ""):
            if value is not None:
                rows, values = cells.setdefault(name, ([], []))
                rows.append(row)
                values.append(value)
    table = Table(path, count)
    for name, (rows, values) in cells.items():
        add_column(table, name, (np.array(rows, np.int64), values))
    return table
