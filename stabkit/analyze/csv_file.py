"""Write tables as CSV files that are safe to open in a spreadsheet."""

from pathlib import Path

import pandas as pd

from stabkit.printing import csv_cell
from stabkit.rundir import atomic_write


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table. Names and settings are written as text, never as a formula (see `csv_cell`).

    The file is replaced as a whole. A device or a pipe, such as /dev/stdout, is written to
    directly. Raises OSError.
    """
    safe = table.set_axis([csv_cell(name) for name in table.columns], axis="columns")
    for at, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            safe.isetitem(at, safe.iloc[:, at].astype(object).map(csv_cell))
    content = safe.to_csv(index=False).encode("utf-8", "backslashreplace")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent} to write it to")
    if path.exists() and not path.is_file():
        path.write_bytes(content)
    else:
        atomic_write(path, content)
