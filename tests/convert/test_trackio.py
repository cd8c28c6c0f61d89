"""Databases of Trackio, in the form that Trackio 0.36 gives them."""

import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import stabkit
from stabkit.cli import main
from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from stabkit.convert.sources import has_logs

TABLE = """
    CREATE TABLE IF NOT EXISTS metrics (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL,
        timestamp TEXT NOT NULL,
        run_name TEXT NOT NULL,
        step INTEGER NOT NULL,
        metrics TEXT NOT NULL
    )
"""
OLD = TABLE.replace("        run_id TEXT NOT NULL,\n", "")
SYSTEM = TABLE.replace("metrics (", "system_metrics (").replace(
    "        step INTEGER NOT NULL,\n", ""
)
Row = tuple[str, str, int, dict[str, Any] | str]  # run id, run name, step, metrics


def project(path: Path, rows: list[Row], table: str = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(table)
        database.execute(SYSTEM)
        insert_into(database, rows, "run_id" in table)
    return path


def insert_into(database: sqlite3.Connection, rows: list[Row], ids: bool = True) -> None:
    for run, name, step, metrics in rows:
        text = metrics if isinstance(metrics, str) else json.dumps(metrics)
        named = {"run_id": run} if ids else {}
        named |= {"timestamp": "2026-01-01T00:00:00", "run_name": name, "metrics": text}
        values = {**named, "step": step}
        marks = ", ".join("?" * len(values))
        database.execute(
            f"INSERT INTO metrics ({', '.join(values)}) VALUES ({marks})", [*values.values()]
        )


def rows(run: str, name: str, count: int = 12) -> list[Row]:
    return [
        (run, name, step, {"train/loss": 2 / (step + 1), "train/global_step": 10 * step})
        for step in range(count)
    ]


def test_every_run_of_a_project_is_one(tmp_path: Path) -> None:
    first, second = rows("x1", "brave-cat"), rows("x2", "brave-cat")
    second[3] = ("x2", "brave-cat", 3, {"train/loss": "NaN", "train/global_step": 30})
    mixed = [row for pair in zip(first, second, strict=True) for row in pair]
    file = project(tmp_path / "my project.db", mixed)
    runs = convert(file, tmp_path / "runs")
    assert [run.folder.name for run in runs] == ["brave-cat", "brave-cat-2"]
    assert {run.format for run in runs} == {"trackio"}
    loss = stabkit.open_run(tmp_path / "runs" / "brave-cat").scalar("train/loss")
    assert loss.index.tolist() == [10 * step for step in range(12)], "the loop's own step"
    assert loss.tolist() == [2 / (step + 1) for step in range(12)]
    assert math.isnan(stabkit.open_run(tmp_path / "runs" / "brave-cat-2").scalar("train/loss")[30])


def test_a_step_that_counts_calls_is_taken_where_there_is_no_other(tmp_path: Path) -> None:
    some: list[Row] = [
        ("x", "a", step, {"loss": 1.0 / (step + 1), "val": {"acc": 0.5}, "image": {"_type": "i"}})
        for step in range(5)
    ]
    file = project(tmp_path / "p.db", [*some, ("x", "a", 5, "no JSON")])
    (run,) = convert(file, tmp_path / "run")
    assert stabkit.open_run(tmp_path / "run").scalar("loss").index.tolist() == [0, 1, 2, 3, 4]
    assert "image" in run.plan.left_out
    assert "1 row left out that are not JSON" in run.plan.notes


def test_databases_before_runs_had_ids(tmp_path: Path) -> None:
    file = project(tmp_path / "old.db", rows("", "a") + rows("", "b"), OLD)
    assert [run.folder.name for run in convert(file, tmp_path / "runs")] == ["a", "b"]


def test_what_a_training_has_just_written_is_read_and_nothing_is_left_beside_it(
    tmp_path: Path,
) -> None:
    file = project(tmp_path / "data" / "p.db", rows("x", "a", 6))
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA wal_autocheckpoint = 0")
        with database:
            insert_into(database, rows("x", "a", 9)[6:])
        before = sorted(path.name for path in file.parent.iterdir())
        assert before == ["p.db", "p.db-shm", "p.db-wal"], "the last rows are not in the file yet"
        convert(file, tmp_path / "run")
        assert sorted(path.name for path in file.parent.iterdir()) == before
    assert len(stabkit.open_run(tmp_path / "run").scalar("train/loss")) == 9


def test_a_folder_of_projects_is_recognized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path / "data" / "p.db", rows("x", "a", 40))
    project(tmp_path / "data" / "q.db", rows("y", "a", 40))
    with closing(sqlite3.connect(tmp_path / "data" / "optuna.db")) as database, database:
        database.execute("CREATE TABLE trials (id INTEGER)")
    assert has_logs(tmp_path / "data")
    runs = convert(tmp_path / "data", tmp_path / "runs")
    assert sorted(run.folder.name for run in runs) == ["p_a", "q_a"]
    assert main(["analyze", str(tmp_path / "data")]) == 0
    assert "udged on train/loss" in capsys.readouterr().out


def test_other_databases_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "optuna.db"
    with closing(sqlite3.connect(other)) as database, database:
        database.execute("CREATE TABLE trials (id INTEGER)")
    damaged = project(tmp_path / "damaged.db", rows("x", "a", 400))
    damaged.write_bytes(damaged.read_bytes()[:9000])
    empty = project(tmp_path / "empty.db", [])
    for file, why in (
        (other, "a SQLite database, but not one of Trackio"),
        (damaged, "not readable as a database of Trackio"),
        (empty, "no run has logged anything"),
    ):
        with pytest.raises(ConvertError, match=why):
            convert(file, tmp_path / "run")
    assert not has_logs(tmp_path / "nothing")
    assert not (tmp_path / "run").exists()
