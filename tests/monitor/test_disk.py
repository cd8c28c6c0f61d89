"""Disks that are full, slow or gone, and folders that change under a training: it goes on."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

import stabkit
from stabkit.rundir import RunBusyError, RunDir, atomic
from stabkit.store import background
from tests.full import no_room
from tests.monitor.toy import Toy, assert_whole, full_disk, kinds, written


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "stabkit"]


@contextmanager
def hanging_disk(part: Path) -> Iterator[None]:
    """Make the writer of this part wait until the block has ended."""
    free, new_beside = threading.Event(), atomic._new_beside

    def hangs(folder: str, name: str) -> tuple[str, BinaryIO]:
        if Path(folder, name) == part:
            free.wait()
        return new_beside(folder, name)

    atomic._new_beside = hangs
    try:
        yield
    finally:
        atomic._new_beside = new_beside
        free.set()


def test_a_disk_full_for_a_while_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        toy.steps(4, monitor)
        written(monitor)
        with full_disk():
            for _ in range(3):  # several failures of one kind
                toy.steps(2, monitor)
                written(monitor)
        toy.steps(6, monitor)
    assert_whole(tmp_path, toy)
    toy.assert_undisturbed()
    assert kinds(tmp_path) == ["write_failed"]  # a line torn by the full disk would be none
    assert "File too large" in RunDir(tmp_path).read_entries()[0]["reason"]
    (once,) = said(caplog)
    assert f"{tmp_path} cannot be written" in once
    assert RunDir(tmp_path).read_status().state == "done"  # type: ignore[union-attr]


def test_a_second_failure_is_an_event_of_its_own(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        for _ in range(2):
            with full_disk():
                toy.steps(4, monitor)
                written(monitor)
            toy.steps(4, monitor)
            written(monitor)
    assert_whole(tmp_path, toy)
    assert kinds(tmp_path) == ["write_failed"] * 2


@pytest.mark.lengthy
def test_a_disk_full_to_the_end_holds_nothing_up_and_its_rows_are_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MOST_ROWS", 8)
    toy = Toy()
    monitor = toy.monitor(tmp_path)
    with full_disk():
        for _ in range(20):
            toy.steps(2, monitor)
            written(monitor)
            assert monitor._recording.out is not None
            assert monitor._recording.out.writer.rows_waiting <= 3 * 8
        monitor.close()
    toy.assert_undisturbed()
    assert not list(tmp_path.glob("*/part-*"))
    first, last = said(caplog)
    assert "cannot be written" in first
    # 40 steps of 2 layers, and of loss, lr, grad_norm_total, nonfinite_layers; beta2 once
    assert f"{40 * 2 + 40 * 4 + 1} rows and 1 events could not be written and are lost" in last


def test_the_status_says_what_a_disk_full_to_the_end_lost(tmp_path: Path) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path)
    toy.steps(4, monitor)
    monitor.flush()
    with pytest.MonkeyPatch.context() as patch:
        no_room(patch)
        toy.steps(4, monitor)
        monitor.close()
    toy.assert_undisturbed()
    status = RunDir(tmp_path).read_status()
    assert status is not None
    assert (status.state, status.step) == ("done", 8)
    # of 4 steps 2 layers and 4 numbers; the event is the one that says why
    assert status.reason == "24 rows and 1 events could not be written and are lost"


def test_when_a_full_disk_comes_back_it_is_said_how_many_rows_had_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MOST_ROWS", 8)
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        with full_disk():
            for _ in range(10):
                toy.steps(2, monitor)
                written(monitor)
        toy.steps(2, monitor)
    run = stabkit.open_run(tmp_path)
    there = len(run.signals()) + len(run.scalars())
    assert kinds(tmp_path) == ["write_failed", "rows_lost"]
    lost = RunDir(tmp_path).read_entries()[1]
    assert (lost["rows"], lost["intervals"]) == (22 * 2 + 22 * 4 + 1 - there, 0)
    assert lost["rows"] > 0
    assert run.signals()["step"].max() == 21  # the oldest went
    assert run.signals()["step"].min() > 10


def test_events_that_no_disk_takes_are_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MOST_EVENTS", 5)
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        assert monitor._recording.out is not None
        with full_disk():
            for step in range(9):
                monitor._recording.out.event("nonfinite", step, layers=["0"])
                written(monitor)
    events = RunDir(tmp_path).read_entries()
    # the one that says why stays, and the last ones
    assert [event.get("step", event["kind"]) for event in events] == [
        "write_failed", 5, 6, 7, 8, "rows_lost",
    ]  # fmt: skip
    assert events[-1]["events"] == 5


@pytest.mark.parametrize("replaced", [False, True])
def test_a_deleted_folder_is_not_made_anew_nor_another_written_to(
    tmp_path: Path, replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    toy = Toy()
    with toy.monitor(folder) as monitor:
        for action in ("log", "mark", "checkpoint"):
            monitor.on("nonfinite", action)
        toy.steps(4, monitor)
        written(monitor)
        shutil.rmtree(folder)
        if replaced:
            folder.mkdir()
        toy.steps(3, monitor)
        monitor.log(loss=float("nan"))  # to be reacted on
        toy.steps(7, monitor)
    toy.assert_undisturbed()
    assert list(tmp_path.rglob("*")) == [folder] * replaced
    # Not always the first: the thread that writes may come after what is said of the loss.
    assert any("folder was deleted or moved" in text for text in said(caplog))


def test_a_folder_that_is_moved_away_and_back_loses_nothing(tmp_path: Path) -> None:
    toy = Toy()
    folder, away = tmp_path / "run", tmp_path / "away"
    with toy.monitor(folder) as monitor:
        toy.steps(4, monitor)
        written(monitor)
        folder.rename(away)
        toy.steps(4, monitor)
        written(monitor)
        away.rename(folder)
        toy.steps(2, monitor)
    assert_whole(folder, toy)
    assert kinds(folder) == ["write_failed"]


def test_a_file_in_the_place_of_a_table(tmp_path: Path) -> None:
    toy = Toy()
    layers, aside = tmp_path / "layers", tmp_path / ".aside"
    with toy.monitor(tmp_path) as monitor:
        toy.steps(6, monitor)
        written(monitor)
        layers.rename(aside)
        layers.write_text("what is this")
        toy.steps(6, monitor)
        written(monitor)
        assert kinds(tmp_path) == ["write_failed"]  # at once, as the event log can be written
        layers.unlink()
        aside.rename(layers)
        toy.steps(2, monitor)
    assert_whole(tmp_path, toy)
    toy.assert_undisturbed()


@pytest.mark.skipif(os.geteuid() == 0, reason="for root no folder is read-only")
def test_a_folder_that_becomes_read_only(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        toy.steps(6, monitor)
        written(monitor)
        for folder in (tmp_path / "layers", tmp_path):
            folder.chmod(0o555)
        toy.steps(6, monitor)
        written(monitor)
        for folder in (tmp_path, tmp_path / "layers"):
            folder.chmod(0o755)
        toy.steps(2, monitor)
    assert_whole(tmp_path, toy)
    toy.assert_undisturbed()


@pytest.mark.lengthy
def test_a_slow_disk_does_not_slow_the_training(tmp_path: Path) -> None:
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        with hanging_disk(tmp_path / "layers" / "part-000000.parquet"):
            toy.steps(40, monitor)  # would never come back
            assert not list(tmp_path.glob("*/part-*"))
        written(monitor)
        assert list(tmp_path.glob("*/part-*"))
    assert_whole(tmp_path, toy)
    toy.assert_undisturbed()


@pytest.mark.lengthy
def test_rows_dropped_for_a_slow_disk_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MOST_WAITING", 4)
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        with hanging_disk(tmp_path / "layers" / "part-000000.parquet"):
            toy.steps(40, monitor)
            assert monitor._recording.out is not None
            assert monitor._recording.out._queue.qsize() <= 4
        written(monitor)
        toy.steps(2, monitor)
    (lost,) = [e for e in RunDir(tmp_path).read_entries() if e["kind"] == "rows_lost"]
    loss = stabkit.open_run(tmp_path).scalar("loss")
    assert 0 < len(loss) < 42
    assert len(loss) == 42 - 2 * lost["intervals"]
    assert loss.tolist() == [toy.losses[step] for step in loss.index]
    toy.assert_undisturbed()


@pytest.mark.parametrize("back", [True, False])
def test_events_that_find_no_room_behind_a_slow_disk_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    monkeypatch.setattr(background, "MOST_EVENTS", 4)
    toy = Toy()
    with toy.monitor(tmp_path) as monitor:
        out = monitor._recording.out
        assert out is not None
        with hanging_disk(tmp_path / "layers" / "part-000000.parquet"):
            toy.steps(2, monitor)
            while out._queue.qsize():  # until the thread hangs in the first write
                pass
            for step in range(20):
                out.event("nonfinite", step, layers=["0"])
            if not back:
                monkeypatch.setattr(out, "_write", lambda acts: None)
        if back:
            written(monitor)
    events = RunDir(tmp_path).read_entries()
    assert [event["step"] for event in events if event["kind"] == "nonfinite"] == [0, 1, 2, 3]
    status = RunDir(tmp_path).read_status()
    assert status is not None
    if back:
        assert [e["events"] for e in events if e["kind"] == "rows_lost"] == [16]
        assert status.reason is None
    else:
        assert status.reason is not None
        assert "16 events could not be written and are lost" in status.reason


def test_a_training_ends_though_its_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "LONGEST_WAIT_S", 0.01)
    toy = Toy()
    monitor = toy.monitor(tmp_path)
    with hanging_disk(tmp_path / "layers" / "part-000000.parquet"):
        toy.steps(7, monitor)
        monitor.flush()
        toy.steps(2, monitor)
        monitor.close()
        (once,) = said(caplog)
        assert "the disk has taken nothing for 0.01 s" in once
        # what is half written must be nobody else's before it is whole
        with pytest.raises(RunBusyError):
            Toy().monitor(tmp_path, first_step=0)
    assert monitor._recording.out is not None
    monitor._recording.out._thread.join()
    assert_whole(tmp_path, toy)
    with Toy().monitor(tmp_path, first_step=0):
        pass


def test_a_strict_monitor_raises_and_keeps_every_row(tmp_path: Path) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path, strict=True)
    toy.steps(4, monitor)
    with full_disk():
        with pytest.raises(OSError, match="File too large"):
            monitor.flush()
        # an error of the thread comes up in a later step
        with pytest.raises(OSError, match="File too large"):  # noqa: PT012
            for _ in range(5):
                toy.steps(2, monitor)
                thread_is_idle(monitor)
    written(monitor)  # or the next call raises what the thread met last
    monitor.flush()
    run = stabkit.open_run(tmp_path)
    steps = run.scalar("grad_norm_total").index.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(toy.losses)
    monitor.close()
    assert kinds(tmp_path) == []


def thread_is_idle(monitor: stabkit.Monitor) -> None:
    done = threading.Event()
    assert monitor._recording.out is not None
    monitor._recording.out._queue.put(done.set)
    done.wait()


def test_closing_a_strict_monitor_raises_and_lets_go(tmp_path: Path) -> None:
    toy = Toy()
    monitor = toy.monitor(tmp_path, strict=True)
    toy.steps(4, monitor)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        monitor.close()
    assert monitor._recording.out is not None
    assert not monitor._recording.out._thread.is_alive()
    with Toy().monitor(tmp_path, first_step=0):
        pass
