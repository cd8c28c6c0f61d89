"""A table of Arrow, from Parquet or CSV -> columns of numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stabkit.convert.columns import Cells, FileTable, add_column
from stabkit.convert.series import shown


def from_arrow(path: Path, table: pa.Table, decimal_comma: bool = False) -> FileTable:
    """Return the columns of a table; those of nested ones are named `outer.inner`."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    result = FileTable(path, table.num_rows, decimal_comma=decimal_comma)
    for padded, data in zip(table.column_names, table.columns, strict=True):
        name = padded.strip().strip('"')
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
