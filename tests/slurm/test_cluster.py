"""What the tests of sweeps on SLURM rely on: that this SLURM is a real one, and goes again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm import cluster as module
from tests.slurm.cluster import Cluster, missing, processes_of, running_cluster
from tests.slurm.conftest import short_folder

pytestmark = pytest.mark.slurm
WAIT_S = 300  # long past what a busy machine takes: only a hang lasts so long
EATS_MEMORY = f"{sys.executable} -c 'import time; x = bytes(range(256)) * 2**20; time.sleep(60)'"


def wait(what: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < deadline, f"not in {WAIT_S} s: {what}"
        time.sleep(0.1)


def submit(cluster: Cluster, script: str, *options: str) -> str:
    words = ("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}")
    return cluster.command(*words).strip()


@pytest.fixture
def folder(slurm: None) -> Iterator[Path]:
    """For a cluster of the test's own, which removes it."""
    path = short_folder()
    yield path
    assert processes_of(path) == []
    assert not path.exists()


def test_a_step_reaches_both_nodes(cluster: Cluster) -> None:
    said = cluster.command("srun", "-N2", "-n2", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(said.split()) == ["n1", "n2"]


def test_an_array_is_limited(cluster: Cluster) -> None:
    """Task numbers end below MaxArraySize."""
    with pytest.raises(RuntimeError, match="Invalid job array specification"):
        submit(cluster, "true", "--array=0-5")
    job = submit(cluster, "true", "--array=0-4")
    wait("done", lambda: set(cluster.state(job).split()) == {"COMPLETED"})
    assert len(cluster.state(job).split()) == 5


def test_ended_processes_of_jobs_do_not_stay(cluster: Cluster) -> None:
    job = submit(cluster, "(true &) ; true", "--array=0-4")
    wait("done", lambda: set(cluster.state(job).split()) == {"COMPLETED"})
    (guard,) = (
        process.parent.name
        for process in Path("/proc").glob("[0-9]*/cmdline")
        if f'{module.__file__}\0["{cluster.folder}"'.encode() in process.read_bytes()
    )

    def ended() -> list[str]:
        """Return the names of the guard's children that have ended and still have a number."""
        lines = subprocess.run(
            ["ps", "--ppid", guard, "-o", "stat=,comm="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        return [line for line in lines if line.startswith("Z")]

    wait("no ended process", lambda: not ended())


def warned_job(tmp_path: Path) -> tuple[str, Path]:
    """Write a job that saves its state and ends when told to; return where it writes."""
    log, step = tmp_path / "log", tmp_path / "step"
    step.write_text(f"""
trap 'squeue -h -j $SLURM_JOB_ID -o %T >> {log}; exit 0' TERM
echo start >> {log}
while true; do sleep 0.1; done
""")
    return f"srun --mem=100 bash {step}", log


def test_a_preempted_job_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    script, log = warned_job(tmp_path)
    job = submit(cluster, script, "-N1", "--mem=100")
    wait("running", lambda: log.exists() and log.read_text() == "start\n")
    other = submit(cluster, "sleep 60", "-N2", "-p", "high", "--exclusive")
    wait("requeued", lambda: cluster.state(job) == "PENDING")
    wait("preempted", lambda: cluster.state(other) == "RUNNING")
    cluster.command("scancel", other)
    cluster.release(job)
    wait("running again", lambda: log.read_text().count("start") == 2)
    first, *warned, second = log.read_text().split()  # a busy SLURM may warn twice
    assert (first, set(warned), second) == ("start", {"COMPLETING"}, "start")
    cluster.command("scancel", job)
    wait("cancelled", lambda: cluster.state(job) == "CANCELLED")


def test_a_job_with_grace_that_ends_by_itself_is_done(cluster: Cluster, tmp_path: Path) -> None:
    """It is told while still running, so that SLURM does not requeue what it need not end."""
    script, log = warned_job(tmp_path)
    job = submit(cluster, script, "-N1", "--mem=100", "-p", "grace")
    wait("running", lambda: log.exists() and log.read_text() == "start\n")
    other = submit(cluster, "sleep 60", "-N2", "-p", "high", "--exclusive")
    wait("preempted", lambda: cluster.state(other) == "RUNNING")
    cluster.command("scancel", other)
    start, told = log.read_text().split()
    assert (start, told in ("RUNNING", "SIGNALING")) == ("start", True)
    assert cluster.state(job) == "COMPLETED"


def test_a_job_over_its_memory_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    """FAILED: without cgroups SLURM sees a process killed, not why."""
    out = tmp_path / "out"
    job = submit(cluster, EATS_MEMORY, "--mem=100", f"--output={out}")
    wait("killed", lambda: cluster.state(job) == "FAILED")
    assert "exceeded memory limit" in out.read_text()


def test_accounting_knows_how_jobs_ended(accounted_cluster: Cluster) -> None:
    jobs = {
        submit(accounted_cluster, "true", "--mem=100"): "COMPLETED",
        submit(accounted_cluster, EATS_MEMORY, "--mem=100"): "FAILED",
        submit(accounted_cluster, "sleep 60", "--mem=100"): "CANCELLED by 0",
    }
    accounted_cluster.command("scancel", list(jobs)[-1])

    def states() -> dict[str, str]:
        said = accounted_cluster.command("sacct", "-n", "-X", "-P", "-o", "JobID,State")
        return dict(line.split("|") for line in said.splitlines())

    wait(f"{jobs}", lambda: jobs.items() <= states().items())


def test_nothing_is_left(folder: Path) -> None:
    """Neither daemons nor a job that hears of no signal and has left its session."""

    def fail() -> None:
        with running_cluster(folder) as cluster:
            job = submit(cluster, "trap '' TERM; setsid sleep 1000 & sleep 1000")
            wait("running", lambda: cluster.state(job) == "RUNNING")
            wait("its processes", lambda: sum("sleep" in p for p in processes_of(folder)) >= 2)
            raise KeyError("a failing test")

    with pytest.raises(KeyError, match="a failing test"):
        fail()


def test_nothing_is_left_by_a_killed_test_run(folder: Path) -> None:
    code = f"""
import pathlib, time
from tests.slurm.cluster import running_cluster
with running_cluster(pathlib.Path({str(folder)!r})):
    print("up", flush=True)
    time.sleep(1000)
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        assert processes_of(folder)
        os.kill(run.pid, signal.SIGKILL)
    wait("the guard's end", lambda: not folder.exists())


def test_a_daemon_that_ends_is_quoted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, not when the time to get ready is over."""
    broken = tmp_path / "slurmctld"
    broken.write_text("#!/bin/sh\necho out of order\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(module, "PATH", f"{tmp_path}:{module.PATH}")
    begin = time.monotonic()
    told = pytest.raises(RuntimeError, match=r"slurmctld\.log:\nout of order")
    with told, running_cluster(folder):
        pass
    assert time.monotonic() - begin < module.READY_S / 2


def test_a_folder_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(ValueError, match="too long for a socket")
    with refused, running_cluster(tmp_path / ("x" * 100)):
        pass


def test_what_is_missing_is_said_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", {"sh": "dash", "no-such-daemon": "slurm-x"})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert missing() == "no SLURM here: apt-get install --no-install-recommends slurm-x"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (missing() or "")
