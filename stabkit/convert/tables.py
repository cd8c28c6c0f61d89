"""Files as tables: CSV, Parquet, JSON, text logs and `.wandb` files -> columns of numbers."""

import codecs
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stabkit.convert.arrow_table import from_arrow
from stabkit.convert.boxes import box_records, is_boxed
from stabkit.convert.columns import FileTable, add_column
from stabkit.convert.csv_file import read_csv
from stabkit.convert.one_axis import on_one_axis
from stabkit.convert.records import flat, is_json, is_text_below_json, json_records
from stabkit.convert.series import ConvertError, shown
from stabkit.convert.text import is_log_text, text_records
from stabkit.convert.unpack import is_packed, refuse_archive, refuse_large, unpacked
from stabkit.convert.wandb_file import MAGIC, wandb_records


def read_table(path: Path, row_step: bool = False) -> FileTable:
    """Read a file by what it holds, whatever its name. Raises ConvertError when it is no table.

    With `row_step` a line of a text log is a row also if it names no step.
    """
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if not start.strip():
        raise ConvertError(f"{path}: empty")
    if is_packed(start):
        with unpacked(path, start) as copy:
            table = read_table(copy, row_step)
        table.path = path
        return table
    refuse_archive(path, start)
    try:
        return _read(path, start, row_step)
    except UnicodeDecodeError as error:
        raise ConvertError(f"{path}: text, but not in UTF-8 ({error}): save it as UTF-8") from None
    except pa.ArrowException as error:
        raise ConvertError(
            f"{path}: not readable as a table or as lines of `name: number` "
            f"({shown(str(error), 300)})"
        ) from None


def _read(path: Path, start: bytes, row_step: bool) -> FileTable:
    """Choose the reader by the first bytes, `start`."""
    if start.startswith(b"PAR1"):
        with (
            path.open("rb") as opened,  # Arrow takes no name that is not UTF-8
            pq.ParquetFile(opened, page_checksum_verification=True) as file,
        ):
            refuse_large(path, file, file.metadata.num_columns)
            return from_arrow(path, file.read())
    notes: list[str] = []
    if start.startswith(MAGIC):
        table = table_of(path, wandb_records(path, notes), notes)
        if not table.columns:
            raise ConvertError(f"{path}: no row of the history is in it: nothing was logged so far")
    elif not _is_text(path):
        raise ConvertError(f"{path}: neither text (UTF-8) nor Parquet nor TensorBoard events")
    elif is_json(start) and not (is_text_below_json(path, start) and is_log_text(path)):
        table = table_of(path, json_records(path, notes), notes)
    elif is_boxed(start.decode(errors="replace")):
        table = table_of(path, box_records(path, notes), notes)
    elif is_log_text(path):
        table = table_of(path, text_records(path, notes, row_step), notes)
        if not table.columns and not row_step and any(text_records(path, [], True)):
            raise ConvertError(
                f"{path}: its lines name numbers (`loss: 0.5`) and no step; count lines by "
                "--row-step",
                "--row-step",
            )
    else:
        table = read_csv(path)
    table.notes += notes
    return table


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


def table_of(path: Path, records: Iterable[Mapping[str, Any]], notes: list[str]) -> FileTable:
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
    table = FileTable(path, count)
    for name, (rows, values) in cells.items():
        add_column(table, name, (np.array(rows, np.int64), values))
    return table
