"""A run that cannot go on bit for bit says what has changed, and goes on only when it may."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import stabkit.train.exactness as exactness
import stabkit.train.loop as loop
from stabkit.cli import main
from stabkit.rundir import RunDir
from stabkit.sweep.job import TrainJob
from stabkit.train.loop import train
from stabkit.train.refusals import InexactResumeError
from tests.conftest import SMALL, small_config
from tests.sweep.preloaded import preload

STEPS = "train.steps=6"
pytestmark = pytest.mark.usefixtures("same_threads")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """Train a run that is stopped in its fourth step."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        yield stopped(tmp_path_factory.mktemp("trained") / "run", patch, 3)
    torch.set_num_threads(threads)


@pytest.fixture
def preempted(trained: RunDir, tmp_path: Path) -> RunDir:
    """Return a copy of the run, for a test to go on with."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "run"))


def stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, allow_inexact: bool = False
) -> RunDir:
    """Train a run that is stopped in step `at`."""
    step = loop.train_step

    def act(*given: Any) -> None:
        if given[4] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        step(*given)

    rundir = RunDir(folder)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", act)
        state = train(small_config(STEPS), rundir, allow_inexact=allow_inexact).state
    assert state == "preempted"
    return rundir


def contents(rundir: RunDir) -> dict[str, bytes]:
    files = (path for path in rundir.path.rglob("*") if path.is_file())
    return {str(path.relative_to(rundir.path)): path.read_bytes() for path in files}


def command(rundir: RunDir, *words: str) -> int:
    return main(["train", "tiny", *SMALL, STEPS, "--run-dir", str(rundir.path), *words])


def rewrite(rundir: RunDir, change: Callable[[dict[str, Any]], None]) -> None:
    meta = rundir.read_meta()
    change(meta["attempts"][-1])
    rundir.write_meta(meta)


def was(name: str, value: object) -> Callable[[RunDir], None]:
    """Pretend that the run was begun where `name` was `value`."""

    def change(attempt: dict[str, Any]) -> None:
        (attempt["packages"] if name in attempt["packages"] else attempt)[name] = value

    return lambda rundir: rewrite(rundir, change)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "NVIDIA H100 80GB HBM3"),
        ("processes", 8),
        ("threads", 16),
        ("processor", "Another CPU @ 3.00GHz"),
        ("kernels", "of no machine"),
        ("stabkit", "0.0.1"),
        *((package, "1.2.3") for package in ("torch", "torchvision", "timm", "numpy", "pillow")),
    ],
)
def test_a_changed_machine_is_refused_and_is_recorded_when_allowed(
    name: str, value: object, preempted: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    now = preempted.read_meta()["attempts"][0]
    now = now["packages"].get(name, now.get(name))
    was(name, value)(preempted)
    before = contents(preempted)
    words = ["runtime.threads=1"] if name == "threads" else []
    assert command(preempted, *words) == 2
    said = capsys.readouterr().err
    assert f"{name} was {value}, is {now}" in said
    assert "--allow-inexact" in said
    with pytest.raises(InexactResumeError, match=f"{name} was"):
        train(small_config(STEPS, *words), preempted)
    assert contents(preempted) == before
    assert command(preempted, "--allow-inexact", *words) == 0
    resume = next(e for e in preempted.read_entries() if e["kind"] == "resume")
    assert (resume["step"], resume["changed"]) == (4, {name: [value, now]})
    attempts = preempted.read_meta()["attempts"]
    assert [a["packages"].get(name, a.get(name)) for a in attempts] == [value, now]


@pytest.mark.lengthy
def test_a_run_begun_with_other_libraries_is_refused_and_every_version_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training itself writes the old record, and again the one that a later resume must fit."""
    own = {name: exactness.installed(name) for name in exactness.PACKAGES}
    old = own | {"torch": "2.6.0+cpu", "torchvision": "0.21.0", "timm": None}
    with monkeypatch.context() as patch:
        patch.setattr(exactness, "installed", old.get)
        rundir = stopped(tmp_path / "run", monkeypatch, 3)
    before = contents(rundir)
    assert command(rundir) == 2
    said = capsys.readouterr().err
    assert f"torch was 2.6.0+cpu, is {own['torch']}" in said
    assert f"torchvision was 0.21.0, is {own['torchvision']}" in said
    assert "numpy was" not in said
    assert contents(rundir) == before
    stopped(tmp_path / "run", monkeypatch, 4, allow_inexact=True)
    resume = next(e for e in rundir.read_entries() if e["kind"] == "resume")
    assert resume["changed"] == {name: [old[name], own[name]] for name in ("torch", "torchvision")}
    assert resume["unchecked"] == ["timm"]
    with monkeypatch.context() as patch:
        patch.setattr(exactness, "installed", old.get)
        with pytest.raises(
            InexactResumeError, match=r"torch was .*, is 2\.6\.0\+cpu.*timm was .*None"
        ):
            train(small_config(STEPS), rundir)
    assert command(rundir) == 0, "with the versions that it went on with"
    assert "changed" not in [e for e in rundir.read_entries() if e["kind"] == "resume"][-1]


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("variable", "value"), [("MKL_CBWR", "COMPATIBLE"), ("ONEDNN_MAX_CPU_ISA", "SSE41")]
)
def test_a_variable_that_chooses_other_kernels_is_a_change(
    variable: str, value: str, preempted: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InexactResumeError, match=f"kernels was .*, is .*{variable}={value}"):
        train(small_config(STEPS), preempted)
    assert train(small_config(STEPS), preempted, allow_inexact=True).state == "done"


@pytest.mark.lengthy
def test_the_setting_allows_as_much_as_the_flag(preempted: RunDir) -> None:
    was("torch", "1.2.3")(preempted)
    assert command(preempted, "runtime.allow_inexact=true") == 0


@pytest.mark.lengthy
def test_a_resumed_run_keeps_its_number_of_threads(preempted: RunDir) -> None:
    """Fewer free cores on the same machine are no change."""
    was("threads", 3)(preempted)
    config = small_config(STEPS)
    auto = config.runtime.model_copy(update={"threads": None})
    assert train(config.model_copy(update={"runtime": auto}), preempted).state == "done"
    assert torch.get_num_threads() == 3
    assert [a["threads"] for a in preempted.read_meta()["attempts"]] == [3, 3]
    resume = next(e for e in preempted.read_entries() if e["kind"] == "resume")
    assert "changed" not in resume


def forget_all(rundir: RunDir) -> None:
    rundir.meta_file.unlink()


def forget_some(rundir: RunDir) -> None:
    def change(attempt: dict[str, Any]) -> None:
        del attempt["processor"], attempt["kernels"]

    rewrite(rundir, change)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("forget", "unchecked"),
    [(forget_all, {"device", "threads", "torch"}), (forget_some, {"processor", "kernels"})],
)
def test_a_run_without_a_record_goes_on_and_says_so(
    forget: Callable[[RunDir], None],
    unchecked: set[str],
    preempted: RunDir,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forget(preempted)
    assert train(small_config(STEPS), preempted).state == "done"
    resume = next(e for e in preempted.read_entries() if e["kind"] == "resume")
    assert unchecked <= set(resume["unchecked"])
    assert "no earlier record to compare with" in caplog.text


@pytest.mark.lengthy
def test_an_unchanged_resume_prints_nothing(
    preempted: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(small_config(STEPS), preempted).state == "done"
    resume = next(e for e in preempted.read_entries() if e["kind"] == "resume")
    assert resume.keys() == {"time", "kind", "step"}
    assert caplog.text == ""


@pytest.mark.lengthy
def test_a_run_without_checkpoint_may_start_on_any_machine(preempted: RunDir) -> None:
    """A run without a checkpoint has no bits to keep."""
    was("torch", "1.2.3")(preempted)
    preempted.checkpoint_file.unlink()
    assert train(small_config(STEPS), preempted).state == "done"


@pytest.mark.lengthy
def test_a_refused_job_writes_the_reason_to_its_status(
    preempted: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    was("processor", "Another CPU @ 3.00GHz")(preempted)
    monkeypatch.chdir(preempted.path)  # a job changes it
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    job = TrainJob(str(preempted.path), str(preempted.path.parent))
    with pytest.raises(InexactResumeError):
        job()
    status = preempted.read_status()
    assert status is not None
    assert status.state == "preempted"
    assert status.reason is not None
    assert "did not go on: processor was Another CPU" in status.reason
    assert TrainJob(job.folder, job.cwd, allow_inexact=True)() == "done"


@pytest.mark.lengthy
def test_a_sweep_names_what_it_refused_and_goes_on_when_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    preload(monkeypatch)
    file = tmp_path / "demo.yaml"
    file.write_text("name: demo\nbase: tiny\ngrid: {optim.lr: [1e-3]}\n")
    words = ["sweep", str(file), "--runs", str(tmp_path / "runs"), *SMALL, STEPS]
    assert main([*words, "--dry-run"]) == 0
    name = next(line for line in capsys.readouterr().out.splitlines() if "missing" in line).split()
    rundir = RunDir(tmp_path / "runs" / "demo" / name[1])
    config = small_config(STEPS, "optim.lr=1e-3")
    assert train(config, rundir).state == "done"
    status = json.loads(rundir.status_file.read_text())
    rundir.status_file.write_text(json.dumps(status | {"state": "preempted"}))
    was("numpy", "1.2.3")(rundir)
    before = contents(rundir)
    assert main(words) == 2
    said = capsys.readouterr().out
    assert f"refused, and left as it was: {rundir.path}" in said
    assert "1 refused" in said
    assert "numpy was 1.2.3" in rundir.log_file.read_text()
    after = contents(rundir)
    assert {name: after[name] for name in before} == before
    assert main([*words, "--allow-inexact"]) == 0
