"""Sweeps on a real SLURM: preempted, requeued, out of time, canceled, and never losing a step.

Most jobs start from a process that has torch (`preloaded_jobs`). The jobs of four tests that are
about the process itself run in a real interpreter: requeue, time limit, snapshot and memory.
"""

import os
import signal
from pathlib import Path

import pytest

from stabkit.rundir import RunDir
from tests.conftest import SMALL
from tests.slurm.conftest import LONG, Site
from tests.train.test_resume import assert_same_run

pytestmark = pytest.mark.slurm
preloaded = pytest.mark.usefixtures("preloaded_jobs")


@preloaded
def test_an_array_of_runs(site: Site) -> None:
    """Six runs where an array may have five; what SLURM has is left alone."""
    with (site.folder / "demo.yaml").open("a") as file:
        file.write("grid: {optim.lr: [1e-3, 2e-3, 3e-3]}\nseeds: [0, 1]\n")
    said = site.sweep(*SMALL)
    assert said.count("submitted 3 runs as array") == 2
    assert "6 running or queued, 0 to run" in site.sweep(*SMALL)
    site.wait_for_state("done")
    assert "6 done, 0 to run" in site.sweep(*SMALL)
    rows = site.rows()
    assert [row.step for row in rows] == [24] * 6
    assert len({row.job for row in rows}) == 6
    for row in rows:
        (attempt,) = RunDir(site.folder / "runs" / row.run).read_meta()["attempts"]
        assert attempt["job"] == row.job
        assert attempt["node"] in ("n1", "n2")
        assert attempt["threads"] == 1


def test_requeued_in_mid_training(site: Site, unbroken: Path) -> None:
    site.sweep(*LONG)
    site.wait_for_step(20)
    job = site.row().job
    site.cluster.command("scontrol", "requeue", job)
    site.wait("stopped", lambda: site.row().state == "preempted")
    site.wait("requeued", lambda: site.cluster.state(job) == "PENDING")
    # SLURM says why a moment after that it waits
    site.wait("reason", lambda: site.row().reason == "in the queue: BeginTime")
    row = site.row()
    assert "1 running or queued, 0 to run" in site.sweep(*LONG)
    site.cluster.release(job)
    site.wait_for_state("done")
    first, second = site.attempts()
    assert first["first_step"] == 0
    assert second["first_step"] == row.step >= 20, "not a step is made twice"
    assert_same_run(site.run(), unbroken)


@preloaded
@pytest.mark.parametrize("partition", ["low", "grace"])
def test_preempted_by_a_higher_partition(site: Site, unbroken: Path, partition: str) -> None:
    """In `low` SLURM requeues the job; in `grace` it only asks it to end, so the job requeues."""
    site.sweep(*LONG, f"slurm.partition={partition}")
    site.wait_for_step(20)
    job = site.row().job
    words = ["sbatch", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 1"]
    site.cluster.command(*words)
    site.wait_for_release(job)
    site.wait_for_state("done")
    assert site.attempts()[1]["first_step"] >= 20
    kinds = [event["kind"] for event in RunDir(site.run()).read_entries()]
    kinds = [kind for kind in kinds if kind != "null_parameters"]
    assert kinds == ["start", "preempted", "resume", "done"]
    assert_same_run(site.run(), unbroken)


@pytest.mark.slow  # SLURM's shortest limit is a minute
def test_out_of_time(site: Site) -> None:
    """A limit of one minute, of which SLURM warns 15 seconds ahead or, as it may, 60 earlier."""
    site.sweep(*LONG, "train.steps=100000", "slurm.timeout_min=1", "slurm.signal_delay_s=15")
    job = site.row().job
    site.wait("begins", lambda: site.cluster.state(job) == "RUNNING")
    site.wait_for_release(job)
    row = site.row()
    assert row.state == "preempted"
    stopped = [e for e in RunDir(site.run()).read_entries() if e["kind"] == "preempted"]
    assert [(e["step"], e["reason"]) for e in stopped] == [(row.step, "stopped by SIGUSR2")]
    log = Path(site.folder / row.log).read_text()
    assert "Requeued job" in log
    site.wait("goes on", lambda: len(site.attempts()) == 2)
    assert site.attempts()[1]["first_step"] == row.step
    site.sweep(*LONG, "train.steps=100000", "--cancel")


@preloaded
def test_canceled_and_launched_again(site: Site, unbroken: Path) -> None:
    site.sweep(*LONG)
    site.wait_for_step(20)
    job = site.row().job
    assert "canceled 1 job;" in site.sweep(*LONG, "--cancel")
    site.wait("canceled", lambda: site.cluster.state(job) == "CANCELLED")
    row = site.row()
    assert (row.state, row.job) == ("preempted", job)
    assert row.reason == f"stopped by SIGTERM; job {job} is not in the queue"
    assert "submitted 1 run " in site.sweep(*LONG)
    assert site.row().job != job
    site.wait_for_state("done")
    assert site.attempts()[1]["first_step"] == row.step
    assert_same_run(site.run(), unbroken)


@preloaded
def test_killed_without_a_signal(site: Site, unbroken: Path) -> None:
    """The last checkpoint is the guarantee; what was recorded past it is trimmed."""
    site.sweep(*LONG)
    site.wait_for_step(120)
    os.kill(site.attempts()[0]["pid"], signal.SIGKILL)
    # On a busy machine SLURM sees the end of the process later than the missing heartbeats tell it.
    site.wait("killed", lambda: "has ended" in (site.row().reason or ""))
    assert site.row().state == "lost"
    site.sweep(*LONG)
    site.wait_for_state("done")
    assert site.attempts()[1]["first_step"] % 50 == 0
    assert_same_run(site.run(), unbroken)


@preloaded
def test_a_drained_node_lets_its_run_end(site: Site) -> None:
    site.sweep(*LONG)
    site.wait_for_step(5)
    node = site.attempts()[0]["node"]
    other = {"n1": "n2", "n2": "n1"}[node]
    site.cluster.command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        site.sweep(*LONG, "seed=1")
        site.wait_for_state("done")
        nodes = [
            RunDir(site.folder / "runs" / row.run).read_meta()["attempts"][0]["node"]
            for row in site.rows()
        ]
        assert sorted(nodes) == sorted([node, other])
    finally:
        site.cluster.command("scontrol", "update", f"NodeName={node}", "State=RESUME")


@preloaded
def test_a_run_that_fails(site: Site) -> None:
    words = [*SMALL, "data.name=imagefolder", "data.path=images"]
    (site.folder / "images").mkdir()
    site.sweep(*words)
    site.wait_for_state("failed")
    row = site.row()
    assert "images: has no held-out folder" in row.reason
    # the job ends a moment after its state is written
    log = site.folder / row.log
    site.wait("the traceback in the log", lambda: "Traceback" in log.read_text())
    said = site.sweep(*words)
    assert "1 failed (--retry failed runs them again), 0 to run" in said
    site.sweep(*words, "--retry", "failed")
    site.wait("another job failed", lambda: site.row().job != row.job)
    site.wait_for_state("failed")


def test_a_snapshot_is_the_code_that_runs(site: Site) -> None:
    site.sweep(*SMALL, "--snapshot")
    site.wait_for_state("done")
    (attempt,) = site.attempts()
    assert Path(attempt["code"]).parent.samefile(site.folder / "runs/demo/.submitit")


def test_out_of_memory(accounted_site: Site) -> None:
    site = accounted_site
    site.sweep(*SMALL, "slurm.mem_gb=0.1")
    site.wait_for_state("lost")
    row = site.row()
    site.wait("accounting", lambda: str(site.row().reason).startswith(("FAILED", "OUT_OF_MEMORY")))
    assert "memory" in Path(site.folder / row.log).read_text().lower()


def test_canceled_in_the_queue(accounted_site: Site) -> None:
    site = accounted_site
    site.sweep(*SMALL, "slurm.additional_parameters={hold: true}")
    row = site.row()
    assert (row.state, row.reason) == ("waiting", "in the queue: JobHeldUser")
    site.sweep(*SMALL, "--cancel")
    site.wait_for_state("lost")
    site.wait("accounting", lambda: "CANCELLED" in str(site.row().reason))
