"""What a job does when its run was stopped: back into the queue, or not."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import stabkit.train.loop as loop
from stabkit.config import ConfigError, save_config
from stabkit.rundir import RunDir, Status, atomic_write
from stabkit.sweep.job import TrainJob
from stabkit.sweep.submissions import read_submitted, write_submitted
from stabkit.train.stopping import PREEMPT_SIGNAL
from tests.conftest import small_config
from tests.sweep.conftest import FakeSlurm


@pytest.fixture
def requeued(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Job 11; the signals that reached submitit's handler, which would requeue it."""
    monkeypatch.setenv("SLURM_JOB_ID", "11")
    calls: list[int] = []
    before = signal.signal(PREEMPT_SIGNAL, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(PREEMPT_SIGNAL, before)


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    rundir = RunDir(tmp_path / "run")
    atomic_write(rundir.config_file, save_config(small_config()).encode())
    return TrainJob(str(rundir.path), str(tmp_path))


def signalled(function: Callable[..., Any]) -> Callable[..., Any]:
    def act(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*args)

    return act


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("slurm_says", "calls"), [("RUNNING", 1), ("COMPLETING", 0), ("PENDING", 0)]
)
def test_a_stopped_job_requeues_itself_only_while_slurm_lets_it_run(
    slurm: FakeSlurm,
    job: TrainJob,
    requeued: list[int],
    monkeypatch: pytest.MonkeyPatch,
    slurm_says: str,
    calls: int,
) -> None:
    """A job that was canceled, or requeued by SLURM itself, is on its way out."""
    (slurm.folder / "queue").write_text(f"{slurm_says}\n")
    monkeypatch.setattr(loop, "train_step", signalled(loop.train_step))
    assert job() == "preempted"
    assert requeued == [PREEMPT_SIGNAL] * calls
    assert job.checkpoint().function.folder == job.folder


@pytest.mark.lengthy
def test_a_job_that_never_makes_a_step_fails_instead(
    slurm: FakeSlurm, job: TrainJob, requeued: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while data is loaded each time, as with a limit shorter than the start."""
    (slurm.folder / "queue").write_text("RUNNING\n")
    monkeypatch.setattr(loop, "load_data", signalled(loop.load_data))
    assert [job(), job(), job()] == ["preempted", "preempted", "failed"]
    assert len(requeued) == 2
    status = RunDir(Path(job.folder)).read_status()
    assert status is not None
    assert "3 times without a single step" in str(status.reason)
    assert "raise slurm.timeout_min" in str(status.reason)


@pytest.mark.lengthy
def test_steps_between_stops_count(
    slurm: FakeSlurm, job: TrainJob, requeued: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm.folder / "queue").write_text("RUNNING\n")
    monkeypatch.setattr(loop, "train_step", signalled(loop.train_step))
    assert [job() for _ in range(5)] == ["preempted"] * 5
    assert len(requeued) == 5


@pytest.mark.lengthy
def test_a_job_that_is_canceled_while_it_starts_has_not_failed(
    slurm: FakeSlurm, job: TrainJob, requeued: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm.folder / "queue").write_text("COMPLETING\n")
    monkeypatch.setattr(loop, "load_data", signalled(loop.load_data))
    assert [job() for _ in range(4)] == ["preempted"] * 4
    assert requeued == []


@pytest.mark.lengthy
def test_a_run_forgets_the_job_it_goes_on_without(slurm: FakeSlurm, job: TrainJob) -> None:
    rundir = RunDir(Path(job.folder))
    write_submitted(rundir, "7")
    loop.train(small_config(), rundir)
    assert read_submitted(rundir) is None


def test_what_a_node_cannot_run_is_told_in_the_status_and_a_trained_run_keeps_its_own(
    slurm: FakeSlurm, job: TrainJob, requeued: list[int]
) -> None:
    rundir = RunDir(Path(job.folder))
    content = save_config(small_config("runtime.device=cuda:77"))
    atomic_write(rundir.config_file, content.encode())
    for before, after in (("waiting", "failed"), ("preempted", "preempted")):
        rundir.write_status(Status(before, 3, 24))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="cuda:77"):
            job()
        status = rundir.read_status()
        assert status is not None
        assert status.state == after
        assert ("cuda:77" in str(status.reason)) == (after == "failed")


@pytest.mark.lengthy
def test_a_run_remembers_its_own_job(slurm: FakeSlurm, job: TrainJob, requeued: list[int]) -> None:
    rundir = RunDir(Path(job.folder))
    write_submitted(rundir, "11")
    assert job() == "done"
    assert read_submitted(rundir) is not None
