"""`metrics.csv` of Lightning's CSVLogger: a row a log call, blank where a value was not logged."""

from pathlib import Path

from stabkit.convert.series import Log
from stabkit.convert.steps import to_log
from stabkit.convert.tables import Table

FILE = "metrics.csv"


def is_metrics(path: Path) -> bool:
    return path.name == FILE


def metrics_log(table: Table, asked: str | None) -> Log:
    """The folder's name, as `version_0`, is the run's."""
    path = table.path
    return to_log(table, asked, path.absolute().parent.name if path.name == FILE else path.stem)
