"""`metrics.csv` of Lightning's CSVLogger: one row per log call, blank where nothing was logged."""

from pathlib import Path

from stabkit.convert.columns import FileTable
from stabkit.convert.series import Log
from stabkit.convert.steps import to_log

FILE = "metrics.csv"


def is_metrics(path: Path) -> bool:
    return path.name == FILE


def metrics_log(table: FileTable, asked: str | None, row_step: bool) -> Log:
    """Return the table as a log, named after its folder, such as `version_0`."""
    path = table.path
    name = path.absolute().parent.name if path.name == FILE else path.stem
    return to_log(table, asked, row_step, name)
