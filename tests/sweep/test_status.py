"""How runs stand by their files, and what SLURM adds."""

import os
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stabkit.config import RunConfig
from stabkit.convert.convert import convert
from stabkit.rundir import AHEAD, LOST_AFTER_S, RunDir, State, Status, atomic_write
from stabkit.sweep.display import status_line
from stabkit.sweep.folders import write_waiting
from stabkit.sweep.grid import PlannedRun
from stabkit.sweep.looks import Looks
from stabkit.sweep.status import Row, status_row, status_rows
from stabkit.sweep.submissions import jobs_folder, write_submitted
from tests.analyze.conftest import plant_run
from tests.conftest import small_config
from tests.sweep.conftest import FakeSlurm


def make_run(name: str, state: State | None, job: str | None = None) -> RunDir:
    rundir = RunDir(Path("runs") / name)
    rundir.path.mkdir(parents=True)
    rundir.config_file.touch()
    if state is not None:
        rundir.write_status(Status(state, 5, 10, reason="as written", eta_s=3.0))
    if job is not None:
        write_submitted(rundir, job)
    return rundir


def rows() -> dict[str, Row]:
    return {row.run: row for row in status_rows(Path("runs"))}


def from_elsewhere(rundir: RunDir, silent_for_s: float, written_for_s: float | None = None) -> None:
    """As if another machine had written the status; its clock and that of the disk may differ."""
    text = rundir.status_file.read_text().replace(socket.gethostname(), "n17")
    status = rundir.read_status()
    assert status is not None
    then = datetime.now(UTC) - timedelta(seconds=silent_for_s)
    atomic_write(rundir.status_file, text.replace(status.heartbeat, then.isoformat()).encode())
    written = time.time() - (silent_for_s if written_for_s is None else written_for_s)
    os.utime(rundir.status_file, (written, written))


def test_a_silent_run_of_another_machine_is_lost_a_speaking_one_is_not(slurm: FakeSlurm) -> None:
    from_elsewhere(make_run("speaks", "running"), LOST_AFTER_S - 60)
    from_elsewhere(make_run("silent", "running"), LOST_AFTER_S + 60)
    make_run("here", "running")  # this machine can see that no process holds it
    assert {name: row.state for name, row in rows().items()} == {
        "speaks": "running",
        "silent": "lost",
        "here": "lost",
    }
    assert "no sign of life since 20" in str(rows()["silent"].reason)


@pytest.mark.parametrize(
    ("said_h_ago", "written_h_ago", "state"),
    [
        (-1, 0, "running"),  # that machine's clock is ahead
        (1, 0, "running"),  # it is behind
        (0, 1, "running"),  # the disk's is
        (1, 1, "lost"),
        (-1, 1, "lost"),  # silent, and its clock is ahead
        (-90_000, 1, "lost"),  # not alive for ever
        (-1, -1, "lost"),  # this machine's clock was set back: nobody can tell
    ],
)
def test_no_clock_is_believed_alone(
    slurm: FakeSlurm, said_h_ago: float, written_h_ago: float, state: str
) -> None:
    from_elsewhere(make_run("a", "running"), 3600 * said_h_ago, 3600 * written_h_ago)
    (row,) = rows().values()
    assert row.state == state
    assert (AHEAD in str(row.reason)) == (said_h_ago < 0 and written_h_ago < 0)


def test_a_running_run_with_events_is_unstable(slurm: FakeSlurm) -> None:
    rundir = make_run("a", "running")
    status = rundir.read_status()
    assert status is not None
    rundir.write_status(replace(status, events={"dip": 2}))
    with rundir.lock():
        (row,) = rows().values()
    assert (row.state, row.events) == ("unstable", {"dip": 2})


def test_the_queue_says_why_a_run_waits_or_that_nobody_runs_it(slurm: FakeSlurm) -> None:
    for name, state, job in (
        ("queued", "waiting", "7_0"),
        ("starting", "waiting", "7_1"),
        ("requeued", "preempted", "7_2"),
        ("canceled", "preempted", "7_3"),
        ("stopping", "preempted", "7_9"),
        ("died", "waiting", "7_4"),
        ("finished", "done", "7_5"),
        ("raised", "failed", "7_6"),
    ):
        make_run(name, state, job)  # type: ignore[arg-type]
    from_elsewhere(make_run("killed", "running", "7_7"), 5)
    from_elsewhere(make_run("trains", "running", "7_8"), 5)
    from_elsewhere(make_run("hangs", "running", "7_10"), LOST_AFTER_S + 60)
    from_elsewhere(make_run("node_died", "running", "7_11"), LOST_AFTER_S + 60)
    (slurm.folder / "queue").write_text(
        "7_0|PENDING|QOSMaxJobs|x\n7_1|RUNNING|None|x\n7_2|PENDING|BeginTime|x\n"
        "7_8|RUNNING|None|x\n7_9|COMPLETING|None|x\n"
        "7_10|RUNNING|None|x\n7_11|PENDING|BeginTime|x\n"
    )
    (slurm.folder / "accounting").write_text("7_7|OUT_OF_MEMORY\n")
    log = jobs_folder(Path("runs").resolve()) / "7_4_0_log.out"
    log.write_text(
        "Traceback\nModuleNotFoundError: No module named 'stabkit'\n\n"
        "submitit INFO: bye\nsrun: error: n1: task 0: Exited with exit code 1\n"
    )
    found = rows()
    hangs = found.pop("hangs")
    assert hangs.state == "lost"
    assert "no sign of life since 20" in str(hangs.reason)
    assert "though SLURM says that its job runs" in str(hangs.reason)
    assert {name: (row.state, row.reason) for name, row in found.items()} == {
        "queued": ("waiting", "in the queue: QOSMaxJobs"),
        "starting": ("waiting", "its job is starting"),
        "requeued": ("preempted", "in the queue: BeginTime"),
        "canceled": ("preempted", "as written; job 7_3 is not in the queue"),
        "stopping": ("preempted", "its job is ending"),
        "died": (
            "lost",
            "job 7_4 has ended; its log says: ModuleNotFoundError: No module named 'stabkit'",
        ),
        "finished": ("done", "as written"),
        "raised": ("failed", "as written"),
        "killed": ("lost", "OUT_OF_MEMORY: job 7_7 has ended"),
        "trains": ("running", "as written"),
        "node_died": ("preempted", "in the queue: BeginTime"),
    }
    assert found["died"].log is not None
    assert Path(found["died"].log).samefile(log)
    assert found["raised"].job == "7_6", "the job is told even when it has ended"


def test_files_alone_are_enough(slurm: FakeSlurm) -> None:
    """From a machine that sees the files and not the cluster."""
    (slurm.folder / "down").touch()
    make_run("queued", "waiting", "7_0")
    make_run("requeued", "preempted", "7_2")
    from_elsewhere(make_run("trains", "running", "7_8"), 5)
    assert [(row.state, row.job) for row in rows().values()] == [
        ("waiting", "7_0"),
        ("preempted", "7_2"),
        ("running", "7_8"),
    ]


def test_a_damaged_record_of_a_job_counts_as_none(slurm: FakeSlurm) -> None:
    make_run("a", "waiting").job_file.write_text("{")
    assert rows()["a"].job is None


@pytest.mark.parametrize("heartbeat", ["", "yesterday", "2026-01-01T00:00:00"])
def test_a_heartbeat_that_is_no_time_is_no_sign_of_life(slurm: FakeSlurm, heartbeat: str) -> None:
    rundir = make_run("a", "running")
    rundir.status_file.write_text(
        f'{{"state": "running", "heartbeat": "{heartbeat}", "host": "n17"}}'
    )
    assert rows()["a"].state == "lost"


def test_a_branch_that_waits_has_made_the_steps_of_its_parent(tmp_path: Path) -> None:
    branch = {"parent": "0" * 8, "step": 10, "end": 20, "change": "placebo"}
    config = RunConfig.model_validate(small_config().model_dump() | {"branch": branch})
    rundir = RunDir(tmp_path / "branch")
    write_waiting(PlannedRun({}, config, "branch"), rundir, "missing", 1)
    row = status_row(rundir, "branch")
    assert (row.state, row.step, row.steps) == ("waiting", 10, 20)


def test_a_run_whose_status_was_deleted_is_lost_and_does_not_wait(tmp_path: Path) -> None:
    run = plant_run(tmp_path / "run")
    RunDir(run).status_file.unlink()
    (row,) = status_rows(tmp_path)
    assert row.state == "lost"
    assert row.reason == "its status.json is missing; how far it came is not known"


def test_a_converted_log_is_recorded_and_waits_for_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n" + "".join(f"{i},{1 + 1 / (i + 1)}\n" for i in range(50)))
    convert(log, tmp_path / "runs" / "a")
    (row,) = status_rows(tmp_path / "runs")
    assert row.state == "recorded"
    assert status_line(row, Looks().of(row)).split() == ["recorded", "a", "stable"]
