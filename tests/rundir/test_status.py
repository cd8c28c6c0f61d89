"""How a run stands, and the last word that it leaves."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stabkit.rundir import RunDir, Status
from tests.full import no_room


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


def test_the_state_of_a_run_is_one_word(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.state() == "waiting"
    run.write_status(Status("running", 3, 10))
    assert run.state() == "lost", "no process holds it"
    run.write_status(Status("failed", 3, 10))
    assert run.state() == "failed"
    run.status_file.unlink()
    (tmp_path / "scalars").mkdir()
    assert run.state() == "lost", "rows without a status"
    run.write_meta({"converted": {}})
    assert run.state() == "recorded"
