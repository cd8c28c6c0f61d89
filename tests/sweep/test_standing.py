"""One judgment of how a run stands, by its files and by what SLURM says of its job."""

import pytest

from stabkit.rundir import LOST_AFTER_S, Standing, State
from stabkit.sweep.queue import Job, SlurmError, is_running, live_jobs
from stabkit.sweep.standing import Judgment, judge
from stabkit.sweep.submissions import read_submitted
from tests.sweep.conftest import FakeSlurm
from tests.sweep.test_status import from_elsewhere, make_run

# What the files say, what the queue says of the job, and the judgment.
CASES: list[tuple[State | None, str | None, Standing, bool]] = [
    (None, "PENDING", "missing", True),
    (None, None, "lost", False),
    ("waiting", "PENDING", "waiting", True),
    ("waiting", None, "lost", False),
    ("running", "RUNNING", "running", True),
    ("running", "COMPLETING", "running", True),
    ("running", "PENDING", "preempted", True),  # killed, and requeued by SLURM
    ("running", None, "lost", False),
    ("preempted", "PENDING", "preempted", True),
    ("preempted", None, "preempted", False),
    ("failed", "PENDING", "failed", True),  # it comes back
    ("failed", "COMPLETING", "failed", False),  # on its way out
    ("failed", None, "failed", False),
    ("done", "RUNNING", "done", False),
]


@pytest.mark.parametrize(("state", "queue", "standing", "has_job"), CASES)
def test_files_and_queue_together(
    slurm: FakeSlurm, state: State | None, queue: str | None, standing: Standing, has_job: bool
) -> None:
    rundir = make_run("a", state, "7")
    if state == "running":
        from_elsewhere(rundir, 5)
    jobs = {} if queue is None else {"7": Job(queue, "", "name")}
    found = judge(rundir, read_submitted(rundir), jobs)
    assert found == Judgment(standing, "7" if has_job else None)


@pytest.mark.parametrize(("queue", "standing"), [("RUNNING", "lost"), ("PENDING", "preempted")])
def test_a_silent_run_whose_job_is_alive_is_not_started_again(
    slurm: FakeSlurm, queue: str, standing: Standing
) -> None:
    rundir = make_run("a", "running", "7")
    from_elsewhere(rundir, LOST_AFTER_S + 60)
    jobs = {"7": Job(queue, "", "name")}
    assert judge(rundir, read_submitted(rundir), jobs) == Judgment(standing, "7")


@pytest.mark.parametrize("state", [None, "waiting", "running", "preempted"])
def test_a_job_counts_as_alive_where_slurm_cannot_be_asked(
    slurm: FakeSlurm, state: State | None
) -> None:
    rundir = make_run("a", state, "7")
    assert judge(rundir, read_submitted(rundir), None).job_id == "7"


def test_a_run_of_this_machine_needs_no_job(slurm: FakeSlurm) -> None:
    rundir = make_run("a", "running", "7")
    with rundir.lock():
        assert judge(rundir, read_submitted(rundir), {}) == Judgment("running")
    assert judge(rundir, None, {}) == Judgment("lost")


def test_a_job_that_is_being_warned_still_runs(slurm: FakeSlurm) -> None:
    """SLURM spells it SIGNALING for a moment; one that asks then must still be requeued."""
    (slurm.folder / "bin" / "squeue").write_text(
        "#!/bin/bash\n[[ $* == *%i* ]] && echo '11|SIGNALING|None|run' || echo SIGNALING\n"
    )
    assert is_running("11")
    assert live_jobs()["11"].state == "RUNNING"


@pytest.mark.parametrize(
    "line", ["slurm_load_jobs error: no controller", "11_0|PENDING", "a|b|c|d|e", "", "11|?|None|x"]
)
def test_what_is_no_job_is_an_error_and_not_an_empty_queue(slurm: FakeSlurm, line: str) -> None:
    """Else a run whose job was not found would be submitted a second time."""
    queue = slurm.folder / "queue"
    queue.write_text("11_0|PENDING|Priority|a|b\n12+1|RUNNING|None|\n")
    assert live_jobs() == {
        "11_0": Job("PENDING", "Priority", "a|b"),
        "12+1": Job("RUNNING", "None", ""),
    }
    queue.write_text(f"11_0|PENDING|Priority|a\n{line}\n")
    with pytest.raises(SlurmError, match="is not a job"):
        live_jobs()
