"""Parquet files of neptune-exporter: every value of a run in a row of its own.

A run is in `<run>_part_0.parquet`, `<run>_part_1.parquet`, …, in the folder of its project. A row
has `run_id`, `attribute_path` and `attribute_type`. Those of type `float_series` have a `step` (a
decimal) and a `float_value`; the others are parameters, texts and files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stabkit.convert.series import ConvertError, Log, Series
from stabkit.convert.unpack import refuse_large

COLUMNS = ("project_id", "run_id", "attribute_path", "attribute_type", "step", "float_value")
MACHINE = "monitoring/"  # use of processor and memory, with steps of its own


def is_part(path: Path) -> bool:
    """Return whether a file in a folder is a part of an export, by its name and its columns."""
    return path.match("*_part_*.parquet") and is_export(path)


def is_export(path: Path) -> bool:
    """Return whether a file has the columns of an export."""
    try:
        with path.open("rb") as file:  # Arrow takes no name that is not UTF-8
            return {*COLUMNS} <= {*pq.read_schema(file).names}
    except (OSError, pa.ArrowException):
        return False


def exported_logs(paths: Sequence[Path]) -> list[Log]:
    """Return a log for each run in these files. Raises ConvertError if there are no series."""
    try:
        rows = pa.concat_tables(_rows(path) for path in paths)
    except pa.ArrowException as error:
        raise ConvertError(f"{paths[0]}: not readable as Parquet ({error})") from None
    kept = pc.and_(pc.equal(rows["attribute_type"], "float_series"), pc.is_valid(rows["step"]))
    frame = rows.filter(pc.and_(kept, pc.is_valid(rows["float_value"]))).to_pandas()
    if frame.empty:
        raise ConvertError(f"{paths[0]}: holds no series of numbers (float_series)")
    several = frame["project_id"].nunique() > 1
    return [
        _log(f"{project}/{run}" if several else str(run), values)
        for (project, run), values in frame.groupby(["project_id", "run_id"], sort=False)
    ]


def _rows(path: Path) -> pa.Table:
    with path.open("rb") as opened, pq.ParquetFile(opened) as file:
        refuse_large(path, file, len(COLUMNS))
        return file.read([*COLUMNS])


def _log(name: str, values: pd.DataFrame) -> Log:
    log = Log(name)
    steps = values["step"].to_numpy(np.float64)
    counts = steps.astype(np.int64)
    if (counts != steps).any():
        counts = np.unique(steps, return_inverse=True)[1]
        log.notes.append("steps with fractions are counted")
    for path, rows in values.assign(step=counts).groupby("attribute_path"):
        if str(path).startswith(MACHINE):
            log.left_out[str(path)] = "of the machine"
        else:
            log.series[str(path)] = Series(
                rows["step"].to_numpy(), rows["float_value"].to_numpy(np.float64)
            )
    return log
