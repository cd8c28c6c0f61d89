import io
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from stabkit.rundir import RunDir, Status
from stabkit.sweep import display, status
from stabkit.sweep.display import live_status, status_line, status_table, watch
from stabkit.sweep.status import Row, row_reader, status_row, status_rows

RUNNING = Row("lr=1", "running", 30, 100, 512.4, 65.0, 0.5)
FAILED = Row("lr=[red]2", "failed", 3, 100, reason="ValueError: [bold]no[/bold]", log="a/log")


def test_a_line_says_everything_known() -> None:
    expected = "running      lr=1  step 30/100  512 images/s  1:05 left  kNN 0.500"
    assert status_line(RUNNING) == expected
    assert "(ValueError: [bold]no[/bold])  (log: a/log)" in status_line(FAILED)
    unstable = replace(RUNNING, state="unstable", events={"dip": 2, "nonfinite": 1})
    assert status_line(unstable).endswith("kNN 0.500  2 dips, 1 nonfinite")
    assert len(status_line(replace(FAILED, reason="two\nlines")).splitlines()) == 1


def test_names_and_reasons_are_never_taken_for_markup() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(status_table([RUNNING, FAILED]))
    text = console.export_text()
    assert "lr=[red]2" in text
    assert "ValueError: [bold]no[/bold]" in text
    assert "30/100" in text


def test_a_log_gets_a_line_when_a_state_changes_and_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = iter(["waiting", "running", "running", "done", "done", "done"])

    def read() -> list[Row]:
        return [Row("a", next(states), 1, 2)]

    with live_status(read):
        pass  # reads at the start and at the end: waiting, then running
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["running"]


def test_watching_a_log_begins_with_every_run_and_ends_with_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["waiting", "waiting", "running", "done", "done", "done"])
    monkeypatch.setattr(display, "WATCH_EVERY_S", 0.0)
    watch(lambda: [Row("a", next(states, "done"), 1, 2)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["waiting", "done"]


@pytest.mark.processes
def test_a_terminal_gets_a_live_table() -> None:
    code = """
from stabkit.sweep.display import live_status
from stabkit.sweep.status import Row
with live_status(lambda: [Row("lr=1", "running", 30, 100, 512.4, 65.0, 0.5)]) as tick:
    tick()
"""
    screen, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], stdout=terminal, env=environment, check=True)
    os.close(terminal)
    written = os.read(screen, 65536)
    os.close(screen)
    assert b"30/100" in written
    assert b"\x1b[" in written, "colors and cursor movement"


def test_a_long_table_shows_what_is_under_way_or_failed_and_counts_the_rest() -> None:
    rows = [Row(f"lr={i}", "waiting") for i in range(90)]
    rows[50], rows[70], rows[80] = RUNNING, FAILED, Row("lr=80", "done")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(display._fitting(rows, 8))
    text = console.export_text()
    assert "30/100" in text
    assert "ValueError" in text
    assert "and 84 waiting, 1 done" in text
    assert "and" not in display._fitting(rows, 100).columns[0]._cells[-1]


def test_only_what_may_have_changed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [RunDir(tmp_path / state) for state in ("waiting", "running", "done")]
    for rundir in runs:
        rundir.path.mkdir()
    runs[0].write_status(Status("waiting"))
    runs[1].write_status(Status("running"))
    runs[2].write_status(Status("done"))
    asked: list[str] = []

    def counted(rundir: RunDir, name: str) -> Row:
        asked.append(name)
        return status_row(rundir, name)

    monkeypatch.setattr(status, "status_row", counted)
    read = row_reader(runs)
    with runs[1].lock():
        assert [row.state for row in read()] == ["waiting", "running", "done"]
        asked.clear()
        assert [row.state for row in read()] == ["waiting", "running", "done"]
        assert asked == ["running"]
    runs[0].write_status(Status("failed", reason="why"))
    assert [row.state for row in read()] == ["failed", "lost", "done"]


def test_rows_tell_a_dead_run_from_a_live_one(tmp_path: Path) -> None:
    for name in ("alive", "dead", "torn", "new"):
        rundir = RunDir(tmp_path / name)
        rundir.path.mkdir()
        rundir.config_file.touch()
        if name != "new":
            rundir.write_status(Status("running", 5, 10, eta_s=3.0))
    (tmp_path / "torn" / "status.json").write_text('{"state"')
    with RunDir(tmp_path / "alive").lock():
        rows = {row.run: row for row in status_rows(tmp_path)}
    assert {name: row.state for name, row in rows.items()} == {
        "alive": "running",
        "dead": "lost",
        "torn": "unreadable",
        "new": "waiting",
    }
    assert rows["alive"].eta_s == 3.0
    assert rows["dead"].eta_s is None
    assert "torn/status.json" in str(rows["torn"].reason)
