import json
import multiprocessing
import os
import shutil
import signal
import socket
import warnings
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.rundir import (
    LinkedError,
    RunBusyError,
    RunDir,
    Status,
    atomic_write,
    find_runs,
    hidden_folder,
    same_folder,
    whole,
)
from stabkit.store.writer import next_part
from tests.full import no_room
from tests.monitor.toy import full_disk


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


@pytest.mark.parametrize("reason", ["short", "long " * 200])
def test_a_last_word_takes_the_place_of_the_one_before_on_a_full_disk(
    tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    run.write_status(Status("running", 3, 10, reason="of medium length " * 10))
    no_room(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        run.write_status(Status("running", 4, 10))
    run.write_status(Status("failed", 4, 10, reason=reason))
    status = run.read_status()
    assert status is not None
    assert (status.state, status.step, status.reason) == ("failed", 4, reason)


@pytest.mark.parametrize("how", ["a link", "a second name", "not a byte of room"])
def test_what_cannot_be_written_over_stays_as_it_was(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = RunDir(tmp_path / "run"), tmp_path / "other"
    run.path.mkdir()
    run.write_status(Status("running", 3, 10))
    before = run.status_file.read_bytes()
    if how == "a link":
        run.status_file.rename(other)
        run.status_file.symlink_to(other)
    if how == "a second name":
        other.hardlink_to(run.status_file)
    no_room(monkeypatch)
    with full_disk() if how == "not a byte of room" else nullcontext(), pytest.raises(OSError):  # noqa: PT011
        run.write_status(Status("failed", 4, 10, reason="why"))
    assert run.status_file.read_bytes() == before


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
    assert ready.wait(300)
    run = RunDir(tmp_path)
    assert run.is_busy()
    with pytest.raises(RunBusyError, match="another process is writing here"), run.lock():
        pass
    process.kill()
    process.join()
    assert not run.is_busy()
    with run.lock():
        pass


def test_a_locked_run_notices_that_its_folder_is_gone_or_another(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.lock() as held:
        held.check()
        run.path.rename(tmp_path / "moved")
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match="the run's folder was deleted or moved"):
                held.check()
            run.path.mkdir(exist_ok=True)


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


def test_a_temporary_file_is_never_opened_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if its name is guessed, or a name of earlier versions is planted."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    for name in ("status.json", "meta.json", "config.yaml"):
        (run / f".{name}.tmp").symlink_to(victim)
        (run / name).symlink_to(victim)
        atomic_write(run / name, b"new")
        assert not (run / name).is_symlink()
    assert victim.read_text() == "precious"
    foreseen = tmp_path / f".report.html.stabkit-{bytes(8).hex()}.tmp"
    foreseen.symlink_to(victim)
    monkeypatch.setattr(os, "urandom", bytes)
    with pytest.raises(FileExistsError):
        atomic_write(tmp_path / "report.html", b"new")
    assert victim.read_text() == "precious"
    assert foreseen.is_symlink()


def test_a_file_has_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / ("ü" * 120), b"")
    finally:
        os.umask(before)
    assert (tmp_path / ("ü" * 120)).stat().st_mode & 0o777 == 0o640


def test_what_kills_left_half_written_does_not_pile_up(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    dead = [f"{f}.x.stabkit-{i:016x}.tmp" for i, f in enumerate(("", "layers/", "checkpoints/"))]
    for name in dead:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".theirs.tmp").touch()  # a folder may be shared with others
    with whole(tmp_path / "alive") as file:
        file.write(b"whole")
        with run.lock():
            assert not [name for name in dead if (tmp_path / name).exists()]
    assert (tmp_path / "alive").read_bytes() == b"whole"
    assert (tmp_path / ".theirs.tmp").exists()
    with pytest.raises(ValueError, match="no"), whole(tmp_path / "alive") as file:
        raise ValueError("no")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"alive", ".theirs.tmp", ".lock", "layers", "checkpoints"}


def test_a_hidden_folder_of_a_killed_process_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out, dead = tmp_path / "out", tmp_path / f".out.{'0' * 16}.tmp"
    theirs = [tmp_path / n for n in (".out.tmp", ".out.0123.tmp", f".other.{'0' * 16}.tmp")]
    for folder in (dead, *theirs):
        (folder / "layers").mkdir(parents=True)
    link = tmp_path / f".out.{'1' * 16}.tmp"
    link.symlink_to(theirs[0])
    with hidden_folder(out) as alive:
        assert not dead.exists()
        with hidden_folder(out) as other:
            assert alive.exists()
            (other / "layers").mkdir()
            other.rename(out)
    assert {path.name for path in tmp_path.iterdir()} == {
        "out",
        link.name,
        *(folder.name for folder in theirs),
    }


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "name", ["layers", "scalars", "evals", "checkpoints", "events.jsonl", "log.txt", ".lock"]
)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_nothing_in_a_run_leads_its_writes_elsewhere(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    (victim / "part-000000.parquet").touch()
    run.mkdir()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(victim if kind == "link" else tmp_path / "made")
    what = "a pipe" if kind == "pipe" else "a link"
    with pytest.raises(LinkedError, match=rf"{name}: is {what}"), RunDir(run).lock():
        pass
    assert (
        main(["train", "tiny", "train.steps=1", "optim.warmup_steps=0", "--run-dir", str(run)]) == 2
    )
    assert str(run) in capsys.readouterr().err  # that it is no run, or what in it is a link
    assert [path.name for path in run.iterdir()] == [name]
    assert [path.name for path in victim.iterdir()] == ["part-000000.parquet"]
    assert not (tmp_path / "made").exists()
    assert not RunDir(run).is_busy()


def test_events_are_not_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "made")
    with pytest.raises(LinkedError, match=r"events\.jsonl: is a link"):
        RunDir(tmp_path).append_event("start", 0)
    (tmp_path / "layers").symlink_to(tmp_path)
    with pytest.raises(LinkedError, match="layers: is a link"):
        next_part(tmp_path / "layers")
    assert not (tmp_path / "made").exists()


def test_links_are_followed_to_runs_alone(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "runs", tmp_path / "scratch"
    for run in (folder / "here", scratch / "there", scratch / "many" / "one"):
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
    (folder / "run").symlink_to(scratch / "there")
    (folder / "many").symlink_to(scratch / "many")
    (folder / "disk").symlink_to("/")
    (folder / "layers").symlink_to("/")  # as a table is called
    (folder / "null").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        server.bind(str(folder / "socket"))
        assert find_runs(folder) == [folder / "here", folder / "run"]
    lines = sorted(str(warning.message).removeprefix(f"{folder}/") for warning in said)
    assert lines == [
        "disk: left out, a link to a folder that is no run",
        "layers: left out, a link to a folder that is no run",
        "many: left out, a link to a folder that is no run",
        "null: left out, a pipe, a socket or a device",
        "pipe: left out, a pipe, a socket or a device",
        "socket: left out, a pipe, a socket or a device",
    ]


@pytest.mark.lengthy
def test_folders_may_be_as_deep_as_they_like(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1500):
        deep = deep / "a"
        deep.mkdir()
    (deep / "config.yaml").touch()
    try:
        assert find_runs(tmp_path) == [deep]
    finally:  # pytest removes folders by recursion, and cannot remove these
        (deep / "config.yaml").unlink()
        while deep != tmp_path:
            deep.rmdir()
            deep = deep.parent


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["pipe", "device", "endless"])
def test_no_reader_waits_for_what_is_no_file(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("status.json", "config.yaml", "events.jsonl", "job.json", "log.txt", ".lock",
             "layers/part-000000.parquet", "evals/part-000000.parquet")  # fmt: skip
    for seed, name in enumerate(names):
        run = tmp_path / f"run {seed}"
        path = run / name
        path.parent.mkdir(parents=True)
        (run / "config.yaml").write_text(f"seed: {seed}\n")
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(1 << 40)
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("unreadable")
    assert main(["analyze", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    for name in ("status.json", "config.yaml", "events.jsonl", "layers/part", "evals/part"):
        assert name in err


@pytest.mark.parametrize(
    ("seconds", "standing"),
    [(-30, "running"), (-3600, "lost"), (30, "running"), (86_400, "lost")],
)
def test_a_heartbeat_from_elsewhere_counts_while_it_is_near_our_clock(
    seconds: float, standing: str, tmp_path: Path
) -> None:
    """One from the future, as of a clock that was set back since, is alive for no longer."""
    heartbeat = datetime.now(UTC) + timedelta(seconds=seconds)
    content = {"state": "running", "host": "another-host", "heartbeat": heartbeat.isoformat()}
    RunDir(tmp_path).status_file.write_text(json.dumps(content))
    os.utime(RunDir(tmp_path).status_file, (heartbeat.timestamp(),) * 2)
    assert RunDir(tmp_path).standing() == standing


def test_a_copy_of_a_running_run_is_lost(tmp_path: Path) -> None:
    run, copy = RunDir(tmp_path / "run"), RunDir(tmp_path / "copy")
    with run.lock():
        run.write_status(Status("running", 3, 8))
        shutil.copytree(run.path, copy.path)
        assert run.standing() == "running"
        assert copy.standing() == "lost"
        run.path.rename(tmp_path / "moved")
        assert RunDir(tmp_path / "moved").standing() == "running"  # the lock goes along
