import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, Group

from stabkit.analyze.verdict import VERDICTS
from stabkit.rundir import RunDir, Status
from stabkit.sweep import display, looks, status
from stabkit.sweep.display import live_status, status_line, watch
from stabkit.sweep.looks import Look, Looks, sparkline
from stabkit.sweep.news import news
from stabkit.sweep.status import Row, row_reader, status_row, status_rows
from stabkit.sweep.table import settings_in, state_words, status_table, time_left, totals
from tests.analyze.conftest import plant_run

RUNNING = Row("lr=1", "running", 30, 100, 512.4, 65.0, 0.5)
FAILED = Row("lr=[red]2", "failed", 3, 100, reason="ValueError: [bold]no[/bold]", log="a/log")


def test_a_line_says_everything_known() -> None:
    expected = "running      lr=1  step 30/100  512 images/s  1:05 left  kNN 50.0 %"
    assert status_line(RUNNING) == expected
    assert "(ValueError: [bold]no[/bold])  (log: a/log)" in status_line(FAILED)
    unstable = replace(RUNNING, state="unstable", events={"dip": 2, "nonfinite": 1})
    assert status_line(unstable).endswith("kNN 50.0 %  2 dips, 1 nonfinite")
    assert len(status_line(replace(FAILED, reason="two\nlines")).splitlines()) == 1


def test_counts_agree_with_their_words() -> None:
    events = {"collapse": 2, "dip": 1, "nonfinite": 2, "stale_moments": 1}
    line = status_line(replace(RUNNING, events=events))
    assert line.endswith("2 collapses, 1 dip, 2 nonfinite, 1 stale_moments")
    rows = [replace(RUNNING, state="done", path=name, eta_s=None) for name in "abcd"]
    verdicts = ["bursts", "stable", "outlier", "unstable"]
    looks = {name: Look(verdict=verdict) for name, verdict in zip("abcd", verdicts, strict=True)}
    found = "1 unstable, 1 with bursts, 1 with outliers, 1 stable"
    assert totals(rows, looks) == f"4 of 4 done ({found})"
    assert totals(rows, {"a": Look(verdict="bursts")}) == "4 of 4 done"
    (message,) = news({}, [replace(RUNNING, events={"dip": 2})], "runs")
    assert message["text"] == "stabkit: lr=1: 2 dips so far (step 30)"


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
from stabkit.sweep.news import news
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
    text = shown(lambda console: display._fitting(rows, console, Looks()), height=10)
    assert "30/100" in text
    assert "ValueError" in text
    assert "and 84 waiting, 1 done" in text
    assert "1 of 90 done, 87 waiting, 1 running, 1 failed · 2:15:43 left" in text
    whole = shown(lambda console: display._fitting(rows, console, Looks()), height=100)
    assert "and 8" not in whole


def shown(make: Callable[[Console], Group], height: int = 50, width: int = 100) -> str:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(make(console))
    return console.export_text()


SWEPT = [
    Row(f"mini/freeze={f},lr={lr},seed=0-{number:08x}", "done", 8, 8, knn=0.5, path=f"{number}")
    for number, (f, lr) in enumerate([(False, 0.004), (False, 0.04), (True, 0.004), (True, 0.04)])
]


def test_each_setting_that_varies_has_a_column_and_the_id_is_there() -> None:
    above, first, *others = shown(lambda _: status_table(SWEPT)).splitlines()
    assert above.split() == ["last"]
    assert first.split() == ["freeze", "lr", "id", "state", "step", "kNN,", "%"]
    assert others[1].split() == ["False", "0.04", "00000001", "done", "8/8", "50.0"]
    assert others[4].split() == ["4", "of", "4", "done"]
    alone = shown(lambda _: status_table(SWEPT[:1]))
    assert alone.splitlines()[2].startswith("freeze=False,lr=0.004,seed=0-00000000")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lr=0.1,seed=0-0123abcd", {"lr": "0.1", "seed": "0", "id": "0123abcd"}),
        ("sigma=_0.1,_0.5_,a=b=c-0123abcd", {"sigma": "_0.1,_0.5_", "a": "b=c", "id": "0123abcd"}),
        ("tiny-0123abcd", None),
        ("lr=0.1,seed=0", None),
        ("x" * 110 + "lr=0.1,see-0123abcd", None),
    ],
)
def test_settings_are_read_from_a_name_that_has_them(
    name: str, settings: dict[str, str] | None
) -> None:
    assert settings_in(name) == settings


def test_only_a_run_that_was_found_stable_is_green() -> None:
    colors = {
        verdict: state_words(SWEPT[0], Look((), verdict)).style for verdict in (None, *VERDICTS)
    }
    assert [verdict for verdict, color in colors.items() if color == "green"] == ["stable"]
    assert colors["collapsed"] == colors["diverged"] == "red"
    assert state_words(replace(SWEPT[0], events={"dip": 1}), Look()).style == "yellow"


def test_a_curve_shows_a_dip_of_one_evaluation_and_ends_where_the_run_is() -> None:
    row = Row("a", "running", 50, 100)
    values = [0.2 + 0.01 * i for i in range(60)]
    values[41] = 0.0
    signs = sparkline(Look(tuple(values)), row, 0.0, 0.8)
    assert len(signs) == 6
    assert signs[4] == "▁"
    assert sorted(signs[:4] + signs[5]) == list(signs[:4] + signs[5])
    assert sparkline(Look((0.5,)), row, 0.5, 0.5) == ""
    assert sparkline(Look(), row, 0.0, 1.0) == ""


def test_the_time_left_counts_what_waits_at_the_rate_of_what_runs() -> None:
    running = [Row("a", "running", 50, 100, eta_s=10.0), Row("b", "running", 0, 100, eta_s=20.0)]
    assert time_left(running) == 20.0
    assert time_left([*running, Row("c", "waiting", 0, 100)]) == pytest.approx(250 / 10)
    assert time_left([*running, Row("c", "failed", 0, 100)]) == 20.0
    begun = [Row("a", "running", 50, 100, eta_s=10.0), Row("b", "running", 0, 100)]
    assert time_left(begun) == pytest.approx(150 / (2 * 5))
    assert time_left([begun[0], replace(begun[1], state="unstable")]) == time_left(begun)
    assert time_left([Row("c", "waiting", 0, 100)]) is None


def test_the_time_left_does_not_jump_when_runs_begin() -> None:
    """A step takes a second, but the first of a run takes 30; the two runs have other batches."""
    done = [Row("a", "done", 100, 100, 64.0), Row("b", "done", 100, 100, 64.0)]
    begun = [
        Row("c", "running", 1, 100, 64 / 30, eta_s=99 * 30),
        Row("d", "running", 1, 100, 32 / 30, eta_s=99 * 30),
    ]
    waiting = [Row("e", "waiting", 0, 100)] * 2
    assert time_left([*begun, *waiting]) > 5000  # nothing else is known
    assert 150 < time_left([*done, *begun, *waiting]) < 500
    resumed = [replace(row, step=81, first=80, eta_s=19 * 30) for row in begun]
    assert 20 < time_left([*done, *resumed]) < 200, "its steps before are not of this process"
    a_run = [Row("c", "running", 50, 100, 64.0, eta_s=50.0)]
    assert time_left([*done, *a_run, *waiting]) == pytest.approx(250)
    assert time_left([*done, *a_run, *waiting], ended=1) == pytest.approx(125), "two at a time"
    assert time_left([*done, *a_run], ended=1) == pytest.approx(50), "nothing waits"
    slow = [replace(row, step=80, images_per_s=2.0, eta_s=20 * 32) for row in begun[:1]]
    assert 400 < time_left([*done, *slow]) < 640  # its own steps count more and more


def test_a_narrow_terminal_loses_the_least_columns() -> None:
    rows = [replace(row, state="running", images_per_s=5.0, eta_s=3.0) for row in SWEPT]
    wide, narrow = (
        shown(lambda _, width=width: status_table(rows, width=width), width=width).splitlines()[1]
        for width in (100, 50)
    )
    assert set(wide.split()) - set(narrow.split()) == {"images/s", "left"}


def test_a_record_is_looked_into_at_the_start_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_run(tmp_path / "run", dip=0.2)
    read: list[str] = []
    monkeypatch.setattr(looks, "_curve", lambda path: read.append(path) or (0.1, 0.2))
    found, row = Looks(), Row("run", "running", 5, 9, path=str(tmp_path / "run"))
    assert [found.of(row).curve for _ in range(3)] == [(0.1, 0.2)] * 3
    assert read == [row.path]
    ended = [found.of(replace(row, state="done")) for _ in range(2)]
    assert ended[0] is ended[1]
    assert ended[0].verdict == "unstable"
    assert len(ended[0].curve) > 10
    assert Looks().of(Row("a", "done", 5, 9)) == Look(), "a row without a folder"

    def fail(*_: object) -> None:
        raise RuntimeError("damaged")

    monkeypatch.setattr("stabkit.analyze.diagnosis.Diagnosis", fail)
    assert Looks().of(replace(row, state="done")) == Look()


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


def test_very_many_runs_are_lines_instead_of_a_table() -> None:
    rows = [Row(f"lr={i}", "waiting", 0, 9) for i in range(display.DRAWN)] + [FAILED]
    console = Console(file=io.StringIO(), width=200)
    console.print(display.whole_table(rows, 200))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue().splitlines()
    assert printed[:-1] == [status_line(row) for row in rows]
    assert printed[-1] == "0 of 2,001 done, 2,000 waiting, 1 failed"
