"""Trackio's SQLite file of a project: every run in it, read without Trackio.

The table `metrics` has one row for each call of `log`: `run_name`, `step`, and `metrics` as JSON,
in which values that are not finite are the texts Infinity, -Infinity and NaN. Since Trackio 0.23
there is a `run_id` as well. The step counts calls unless the loop gave one, as `_step` does in
Weights & Biases.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stabkit.convert.naming import ROWS
from stabkit.convert.series import ConvertError, Log
from stabkit.convert.steps import to_log
from stabkit.convert.tables import table_of
from stabkit.printing import counted

MAGIC = b"SQLite format 3\0"
WAL = "-wal"  # behind the name of a file that holds what was written last
START = 1 << 20  # bytes that are searched for the definition of the tables


def is_sqlite(path: Path) -> bool:
    return _start(path).startswith(MAGIC)


def is_project(path: Path) -> bool:
    """Return whether a file in a folder is a database of Trackio, by its name and its tables."""
    if path.suffix != ".db" or not is_sqlite(path):
        return False
    start = _start(path) + _start(path.with_name(path.name + WAL))
    return b"CREATE TABLE metrics" in start and b"run_name" in start


def _start(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(START)
    return b""


def project_logs(path: Path, asked: str | None, row_step: bool) -> list[Log]:
    """Return a log for each run of a project that logged something, in the order they began.

    Raises ConvertError for a database without such runs, or one that cannot be read.
    """
    try:
        runs = _read(path)
    except sqlite3.Error as error:
        raise ConvertError(
            f"{path}: not readable as a database of Trackio ({error}); if a training writes to it, "
            "try again"
        ) from None
    if not runs:
        raise ConvertError(f"{path}: no run has logged anything")
    logs = []
    for (_, name), rows in runs.items():
        notes: list[str] = []
        table = table_of(path, _records(rows, notes), notes)
        table.notes += notes
        logs.append(to_log(table, asked, row_step, name))
    return logs


def _read(path: Path) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """Return steps and metrics by the id and the name of the run, in the order written.

    A copy is opened: SQLite would write beside a database that a training has open.
    """
    with TemporaryDirectory(prefix="stabkit-") as folder:
        copy = Path(folder) / "copy.db"
        for end in ("", WAL):
            if (file := path.with_name(path.name + end)).is_file():
                shutil.copyfile(file, copy.with_name(copy.name + end))
        with closing(sqlite3.connect(copy)) as database:
            names = {str(row[1]) for row in database.execute("PRAGMA table_info(metrics)")}
            if not {"run_name", "step", "metrics"} <= names:
                raise ConvertError(f"{path}: a SQLite database, but not one of Trackio")
            run = "run_id" if "run_id" in names else "run_name"
            found: dict[tuple[str, str], list[tuple[int, str]]] = {}
            query = f"SELECT {run}, run_name, step, metrics FROM metrics ORDER BY id"
            for key, name, step, metrics in database.execute(query):
                found.setdefault((str(key), str(name)), []).append((step, metrics))
            return found


def _records(rows: list[tuple[int, str]], notes: list[str]) -> Iterator[dict[str, Any]]:
    wrong = 0
    for step, text in rows:
        try:
            metrics = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            metrics = None
        if isinstance(metrics, dict):
            yield {**metrics, ROWS: step}
        else:
            wrong += 1
    if wrong:
        notes.append(f"{counted(wrong, 'row')} left out that are not JSON")
