import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from stabkit.rundir import RunBusyError, RunDir, Status, atomic_write, find_runs, same_folder


def test_status_and_meta_read_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "weird 'name' [1] ü")
    assert run.read_status() is None
    with pytest.raises(FileNotFoundError, match="the run's folder was deleted or moved"):
        run.write_status(Status("running"))
    run.path.mkdir()
    run.write_status(Status("running", 3, 10, knn=0.5))
    status = run.read_status()
    assert status is not None
    assert (status.state, status.step, status.knn) == ("running", 3, 0.5)
    assert status.heartbeat.endswith("+00:00")
    run.write_meta({"a": 1})
    assert run.read_meta() == {"a": 1}


def test_a_damaged_status_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(ValueError, match=r"status\.json: not a status file"):
        RunDir(tmp_path).read_status()


def _die_in_replace(path: Path) -> None:
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    atomic_write(path, b"new" * 1000)


def test_a_kill_in_the_middle_of_a_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    process = multiprocessing.get_context("fork").Process(target=_die_in_replace, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    atomic_write(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "a leftover is reused, then gone"


def test_events_survive_a_torn_line_and_trim_keeps_the_lifecycle(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_event("start", 0)
    run.append_event("nonfinite", 4, layers=["norm"])
    run.append_event("nonfinite", 9)
    with run.events_file.open("a") as file:
        file.write('{"kind": "nonf')
    assert [e["kind"] for e in run.read_events()] == ["start", "nonfinite", "nonfinite"]
    run.trim_events(9)
    run.append_event("resume", 9)
    kinds = [(e["kind"], e["step"]) for e in run.read_events()]
    assert kinds == [("start", 0), ("nonfinite", 4), ("resume", 9)]
    for line in run.events_file.read_text().splitlines():
        json.loads(line)


def _hold(path: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with RunDir(path).lock():
        ready.set()
        signal.pause()


def test_the_lock_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    run = RunDir(tmp_path)
    assert run.is_busy()
    with pytest.raises(RunBusyError, match="another process is writing here"), run.lock():
        pass
    process.kill()
    process.join()
    assert not run.is_busy()
    with run.lock():
        pass


def test_a_folder_made_anew_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    is_same = same_folder(folder)
    assert is_same()
    folder.rename(tmp_path / "b")
    assert not is_same()
    for _ in range(20):  # file systems like to give a number again
        folder.mkdir()
        assert not is_same()
        folder.rmdir()
    (tmp_path / "b").rename(folder)
    assert is_same()
    open_before = len(os.listdir("/dev/fd"))
    del is_same
    assert len(os.listdir("/dev/fd")) == open_before - 1


def test_find_runs_goes_deep_but_not_into_runs_or_hidden_folders(tmp_path: Path) -> None:
    for name in ("b/run2", "a/x/run1", ".hidden/run3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "a/x/run1/checkpoints").mkdir()
    (tmp_path / "foreign/scalars").mkdir(parents=True)
    found = [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)]
    assert found == ["a/x/run1", "b/run2", "foreign"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_runs(tmp_path / "nothing")
