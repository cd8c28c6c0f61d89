"""Sweeps as a user runs them: real processes, real kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import stabkit
from stabkit.cli import main
from stabkit.config import load_config, save_config
from stabkit.rundir import RunDir, Status
from stabkit.sweep import pool
from stabkit.sweep.grid import PlannedRun
from stabkit.sweep.pool import make_slots
from stabkit.sweep.reconcile import Task
from stabkit.sweep.worker import Slot, Worker
from tests.conftest import SMALL, small_config
from tests.sweep.preloaded import preloaded
from tests.train.test_resume import assert_same_run

pytestmark = pytest.mark.processes

__all__ = ["preloaded"]  # the fixture

SWEEP = """
name: demo
base: tiny
grid: {optim.lr: [1e-3, 2e-3]}
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "demo.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return Path("demo.yaml")


@pytest.mark.usefixtures("preloaded")
def test_a_sweep_runs_every_run_once_and_reports(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", str(sweep), *SMALL]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("missing") == 2
    assert not Path("runs").exists()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "2 runs, 0 done, 2 to run" in printed
    assert "2 runs done, 0 failed" in printed
    assert main(command) == 0
    assert "2 runs, 2 done, 0 to run" in capsys.readouterr().out

    runs = stabkit.load("runs/demo")
    table = runs.table()
    assert table["state"].tolist() == ["done", "done"]
    assert table["optim.lr"].tolist() == [1e-3, 2e-3]
    assert table["knn_last"].notna().all()
    first = next(iter(runs)).dir
    assert main(["train", str(first.config_file), "--run-dir", "alone"]) == 0
    assert_same_run(first.path, Path("alone"))
    capsys.readouterr()
    for run in runs:
        (attempt,) = run.dir.read_meta()["attempts"]
        assert attempt["threads"] == 1
        assert {"torch", "timm"} <= attempt["packages"].keys()

    assert main(["status", "runs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["state"], row["step"]) for row in rows] == [("done", 24), ("done", 24)]


@pytest.mark.usefixtures("preloaded")
def test_one_failure_leaves_the_others_running_and_is_retried(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure is a damaged checkpoint in the folder of one run."""
    command = ["sweep", str(sweep), *SMALL]
    main([*command, "--dry-run"])
    first = capsys.readouterr().out.splitlines()[1].split()[-1]
    bad = Path("runs/demo") / first / "checkpoints" / "last.pt"
    bad.parent.mkdir(parents=True)
    config = load_config("tiny", [*SMALL, "optim.lr=1e-3"])
    RunDir(bad.parents[1]).config_file.write_text(save_config(config), encoding="utf-8")
    bad.write_bytes(b"no checkpoint")
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "1 run done, 1 failed" in printed
    assert "last.pt: not a file of tensors" in printed
    bad.unlink()
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "1 failed (--retry failed runs them again), 0 to run" in printed
    assert main([*command, "--retry", "failed"]) == 0
    assert "2 runs, 1 done, 1 to run" in capsys.readouterr().out


@pytest.mark.usefixtures("preloaded")
def test_a_refused_run_is_reported_with_the_refusal(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that waits has failed; one that has trained keeps its status."""
    words = [*SMALL, "optim.lr=1e-3", "runtime.device=cuda:77"]
    assert main(["sweep", str(sweep), *words]) == 1
    printed = capsys.readouterr().out
    assert "0 runs done, 1 failed" in printed
    assert "runtime.device 'cuda:77': " in printed
    assert "exit code" not in printed
    (run,) = stabkit.load("runs/demo")
    run.dir.write_status(Status("preempted", 3, 24))
    assert main(["sweep", str(sweep), *words]) == 2
    printed = capsys.readouterr().out
    assert f"refused, and left as it was: {run.path}\n    " in printed
    assert printed.count("runtime.device 'cuda:77': ") == 1
    assert run.dir.standing() == "preempted"


def test_a_run_killed_from_outside_is_reported_with_its_signal(sweep: Path) -> None:
    """The launcher sees its run die by SIGKILL, and says so."""
    settings = [*SMALL, "optim.lr=1e-3", "train.steps=100000", "data.num_train=640"]
    command = [sys.executable, "-m", "stabkit", "sweep", str(sweep), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    victim = _wait_for_step()
    os.kill(victim, signal.SIGKILL)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "the process was killed by SIGKILL; see runs/demo" in printed


def test_an_ended_launcher_takes_its_runs_with_it(sweep: Path) -> None:
    settings = [*SMALL, "optim.lr=1e-3", "train.steps=100000", "data.num_train=640"]
    command = [sys.executable, "-m", "stabkit", "sweep", str(sweep), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    victim = _wait_for_step()
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "runs/demo: another process is writing here" in second.stderr
    process.terminate()
    process.communicate(timeout=600)
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    (run,) = stabkit.load("runs/demo")
    assert not run.dir.is_busy()
    status = run.dir.read_status()
    assert status is not None
    assert status.state == "preempted", "it was given the time to save"
    saved = torch.load(run.dir.checkpoint_file, weights_only=True)
    assert saved["step"] == status.step


def _wait_for_step() -> int:
    """Return the process id of the one run, once it has a checkpoint."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for checkpoint in Path("runs").glob("*/*/checkpoints/last.pt"):
            meta = json.loads((checkpoint.parents[1] / "meta.json").read_text())
            return int(meta["attempts"][-1]["pid"])
        time.sleep(0.05)
    raise AssertionError("the run wrote no checkpoint in ten minutes")


def test_cores_and_gpus_are_divided_among_runs() -> None:
    config, free = small_config(), small_config("runtime.threads=null", "runtime.device=auto")
    assert [s.cpus for s in make_slots([config] * 9, range(4), [])] == [(0,), (1,), (2,), (3,)]
    assert [s.cpus for s in make_slots([free] * 2, range(5), [])] == [(0, 1), (2, 3)]
    assert [s.cpus for s in make_slots([free] * 9, range(2), [])] == [(0,), (1,)]
    gpu_slots = make_slots([free] * 3, range(4), ["0", "1"])
    assert [(s.cpus, s.gpu) for s in gpu_slots] == [((0, 1), "0"), ((2, 3), "1")]
    assert {s.gpu for s in make_slots([config] * 3, range(4), ["0", "1"])} == {None}
    shared = small_config("runtime.device=auto", "runtime.runs_per_gpu=2")
    slots = make_slots([shared] * 9, range(8), ["0", "1"])
    assert [s.gpu for s in slots] == ["0", "1", "0", "1"], "few runs spread over all GPUs"
    assert [s.cpus for s in slots] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert {s.sharers for s in slots} == {2}
    assert len(make_slots([shared] * 2, range(8), ["0", "1"])) == 2, "one each, so none shares"


def test_a_worker_gives_its_runs_the_gpu_and_the_cores_of_its_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs end at once, since their configuration is wrong."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # what is said comes in pieces
    cpu = min(os.sched_getaffinity(0))
    worker = Worker(Slot((cpu,), "7", 2))
    try:
        for name in ("a", "b"):
            rundir = RunDir(tmp_path / name)
            rundir.path.mkdir()
            rundir.config_file.write_text("sed: 0\n")
            worker.start(rundir)
            assert worker.exit_code() == 2
            assert "sed: no such setting; did you mean 'seed'?" in rundir.log_file.read_text()
        variables = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=7" in variables
        assert os.sched_getaffinity(worker.pid) == {cpu}
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        worker.start(rundir)
        assert worker.exit_code() == -signal.SIGKILL
        assert worker.has_ended()
    finally:
        worker.stop()
        worker.join()


def test_the_longest_run_starts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Instant:
        """Ends each run at once."""

        def __init__(self, slot: Slot) -> None:
            self.slot = slot
            self.ended, self.end = os.pipe()

        def start(self, rundir: RunDir, allow_inexact: bool) -> None:
            started.append(rundir.path.name)
            os.write(self.end, b"0")

        def fileno(self) -> int:
            return self.ended

        def exit_code(self) -> int:
            return int(os.read(self.ended, 1))

        def has_ended(self) -> bool:
            return False

        def stop(self) -> None:
            os.close(self.end)

        def join(self) -> None:
            os.close(self.ended)

    monkeypatch.setattr(pool, "Worker", Instant)
    changes = {
        "short": "train.steps=5",
        "usual": "train.steps=24",
        "rare": "knn.every=20",
        "wide": "model.width=32",
    }
    runs = {name: PlannedRun({}, small_config(change), name) for name, change in changes.items()}
    tasks = [Task(run, RunDir(tmp_path / name), "missing") for name, run in runs.items()]
    pool.run_pool(tasks, [Slot((0,), None)], lambda: None)
    assert started == ["wide", "usual", "rare", "short"]


def test_a_full_gpu_is_reported_with_what_would_fit(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path / "run")
    rundir.path.mkdir()
    task = Task(PlannedRun({}, small_config(), "run"), rundir, "missing")
    reasons = {}
    for sharers in (4, 1):
        rundir.write_status(Status("failed", reason="OutOfMemoryError: CUDA out of memory."))
        reasons[sharers] = pool._final_status(task, 1, Slot((0,), "0", sharers)).reason
        assert rundir.last_status().reason == reasons[sharers]  # type: ignore[union-attr]
    assert "4 runs share the GPU; fewer fit: runtime.runs_per_gpu" in str(reasons[4])
    assert reasons[1] == "OutOfMemoryError: CUDA out of memory."


def test_threads_once_chosen_are_kept(sweep: Path) -> None:
    settings = [*SMALL, "runtime.threads=null", "optim.lr=1e-3", "train.steps=4"]
    assert main(["sweep", str(sweep), *settings]) == 0
    (run,) = stabkit.load("runs/demo")
    chosen = load_config(str(run.dir.config_file)).runtime.threads
    assert chosen == len(os.sched_getaffinity(0))
    assert run.dir.read_meta()["attempts"][0]["threads"] == chosen


@pytest.mark.usefixtures("preloaded")
def test_a_log_that_is_a_link_is_refused_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rundir = RunDir(tmp_path / "run")
    rundir.path.mkdir()
    rundir.config_file.write_text(save_config(small_config()))
    rundir.log_file.symlink_to(tmp_path / "made")
    worker = Worker(Slot((0,), None))
    worker.start(rundir)
    assert worker.exit_code() == 2
    worker.stop()
    worker.join()
    assert not (tmp_path / "made").exists()
    assert f"{rundir.log_file}: is a link" in capfd.readouterr().err
