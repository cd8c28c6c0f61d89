"""Runs that outlive their launcher or worker, or go on elsewhere: the sweep is not done then."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.config import load_config, save_config
from stabkit.rundir import AHEAD, RunDir, State, Status
from stabkit.sweep import launch
from stabkit.sweep.grid import load_sweep
from stabkit.sweep.pool import Outcome
from stabkit.sweep.reconcile import Task
from stabkit.sweep.worker import Worker
from tests.conftest import SMALL
from tests.sweep.preloaded import preload
from tests.sweep.test_pool import _wait_for_step, sweep

pytestmark = pytest.mark.processes

__all__ = ["sweep"]  # the fixture

Launched = tuple["subprocess.Popen[str]", int]
LONG = [*SMALL, "optim.lr=1e-3", "train.steps=100000", "data.num_train=640"]
ELSEWHERE = "1 run goes on elsewhere, so the sweep is not done"


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, which has torch already and runs one run after the other."""
    monkeypatch.setattr(launch, "visible_cpus", lambda: [min(os.sched_getaffinity(0))])
    preload(monkeypatch)


def run_dirs(sweep: Path, *settings: str) -> list[RunDir]:
    runs = load_sweep(sweep, None, [*SMALL, *settings]).runs
    return [RunDir(Path("runs/demo") / run.folder) for run in runs]


def plant(rundir: RunDir, status: Status, *settings: str) -> None:
    rundir.path.mkdir(parents=True)
    rundir.config_file.write_text(save_config(load_config("tiny", [*SMALL, *settings])))
    rundir.write_status(status)


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def launched(sweep: Path) -> Iterator[Launched]:
    """Yield a launcher and its one run, which has a checkpoint; kill both at the end."""
    command = [sys.executable, "-m", "stabkit", "sweep", str(sweep), *LONG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        victim = _wait_for_step()
        yield process, victim
        for one in (victim, process.pid):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def test_a_run_outlives_its_launcher_and_the_next_one_says_so(
    sweep: Path,
    launched: Launched,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launcher, victim = launched
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert main(["sweep", str(sweep), *LONG]) == 1
    printed = capsys.readouterr().out
    assert "left alone, another process is running it" in printed
    assert ELSEWHERE in printed
    os.kill(victim, 0)  # it is still there


def test_a_run_outlives_its_worker_and_the_launcher_waits_for_it(launched: Launched) -> None:
    launcher, victim = launched
    os.kill(parent_of(victim), signal.SIGKILL)
    os.kill(victim, signal.SIGTERM)  # to the run itself, which saves: it has heard of no kill
    printed, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 1
    assert "its worker was killed, the run went on without: runs/demo" in printed
    assert "0 runs done, 0 failed, 1 stopped" in printed


def test_a_run_whose_worker_was_killed_ends_with_the_launcher(launched: Launched) -> None:
    launcher, victim = launched
    os.kill(parent_of(victim), signal.SIGKILL)
    wait_until(lambda: parent_of(victim) == 1 or not Path(f"/proc/{victim}").exists())
    launcher.terminate()
    launcher.communicate(timeout=600)
    assert launcher.returncode == 143
    (rundir,) = [RunDir(path.parent) for path in Path("runs/demo").glob("*/config.yaml")]
    assert rundir.standing() == "preempted", "no process has it, and it had the time to save"


def test_runs_go_on_after_their_worker_was_killed(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first run begins, and while it trains; a new one takes the second run."""
    kills: list[int] = []
    start, exit_code = Worker.start, Worker.exit_code

    def killed_first(worker: Worker, rundir: RunDir, *words: bool) -> None:
        if not kills:
            kills.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            wait_until(worker.has_ended)
        start(worker, rundir, *words)
        if len(kills) == 1 and worker.pid != kills[0]:
            wait_until(lambda: rundir.read_status().state == "running")  # type: ignore[union-attr]
            kills.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    def noted(worker: Worker) -> int:
        codes.append(exit_code(worker))
        return codes[-1]

    codes: list[int] = []
    monkeypatch.setattr(Worker, "start", killed_first)
    monkeypatch.setattr(Worker, "exit_code", noted)
    assert main(["sweep", str(sweep), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert "2 runs done, 0 failed" in printed
    assert printed.count("its worker was killed, the run went on without") == 1
    for rundir in run_dirs(sweep):
        assert len(rundir.read_meta()["attempts"]) == 1


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_whose_worker_is_killed_again_and_again_has_failed(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Worker.start

    def killed(worker: Worker, rundir: RunDir, *words: bool) -> None:
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(worker.has_ended)
        start(worker, rundir, *words)

    monkeypatch.setattr(Worker, "start", killed)
    assert main(["sweep", str(sweep), *SMALL]) == 1
    printed = capsys.readouterr().out
    assert "0 runs done, 2 failed" in printed
    assert printed.count("\n    the process was killed by SIGKILL") == 2
    assert "went on without" not in printed


@dataclass(frozen=True)
class Launch:
    """What a launch printed, and the run that nothing happened to."""

    out: str
    err: str
    healthy: RunDir
    runs: dict[str, RunDir]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Launch six runs, of which one is healthy; the launcher itself cannot write on `full disk`."""
    folder = tmp_path_factory.mktemp("troubled")
    names = ("deleted", "full disk", "edited", "failed", "elsewhere", "healthy")
    rates = [f"{i + 1}e-3" for i in range(len(names))]
    (folder / "demo.yaml").write_text(
        f"name: demo\nbase: tiny\ngrid: {{optim.lr: [{', '.join(rates)}]}}\n"
    )
    start, write = Worker.start, RunDir.write_status
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = [RunDir(run.path.resolve()) for run in run_dirs(Path("demo.yaml"))]
        runs = dict(zip(names, found, strict=True))
        plant(runs["failed"], Status("failed", 3, 8), "optim.lr=4e-3")
        with on_host("another-host"):
            plant(runs["elsewhere"], Status("running", 3, 8), "optim.lr=5e-3")

        def breaks(worker: Worker, rundir: RunDir, *words: bool) -> None:
            config = runs["edited"].config_file
            config.write_text(config.read_text().replace("lr: 0.003", "lr: 0.009"))
            if rundir.path.name == runs["deleted"].path.name:
                shutil.rmtree(rundir.path)
            elif rundir.path.name == runs["full disk"].path.name:
                rundir.config_file.unlink()
            start(worker, rundir, *words)

        def full(rundir: RunDir, status: Status) -> None:
            if rundir.path.name == runs["full disk"].path.name and status.state == "failed":
                raise OSError(errno.ENOSPC, "No space left on device")
            write(rundir, status)

        patch.setattr(launch, "visible_cpus", lambda: [min(os.sched_getaffinity(0))])
        preload(patch)
        patch.setattr(Worker, "start", breaks)
        patch.setattr(RunDir, "write_status", full)
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            stderr = os.dup(2)  # what the worker's runs say as well
            os.dup2(err.fileno(), 2)
            try:
                with redirect_stdout(out), redirect_stderr(err):
                    assert main(["sweep", "demo.yaml", *SMALL]) == 1
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
    return Launch((folder / "out").read_text(), (folder / "err").read_text(), runs["healthy"], runs)


@contextmanager
def on_host(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: name)
        yield


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("deleted", "the run's folder was deleted"),
        ("full disk", "config.yaml: No such file"),
        ("edited", "is the folder of another run"),
    ],
)
def test_one_run_that_cannot_be_trained_leaves_the_others_running(
    how: str, reason: str, troubled: Launch
) -> None:
    assert troubled.healthy.standing() == "done"
    assert "1 run done, 3 failed" in troubled.out
    (said,) = (
        part for part in troubled.out.split("failed: ")[1:] if troubled.runs[how].path.name in part
    )
    assert reason in said
    assert "Traceback" not in troubled.err


def test_a_configuration_that_is_edited_while_its_run_waits_is_refused(troubled: Launch) -> None:
    edited = troubled.runs["edited"]
    assert f"{edited.path.name}: is the folder of another run" in troubled.out
    assert "optim.lr" in troubled.out
    assert edited.standing() == "waiting"


def test_runs_that_are_left_alone_stay_as_they_were(troubled: Launch) -> None:
    """One has failed, one trains on another machine; the other run is trained all the same."""
    assert troubled.healthy.standing() == "done"
    assert "1 failed (--retry failed runs them again)" in troubled.out
    assert ELSEWHERE in troubled.out
    states = [troubled.runs[name].last_status() for name in ("failed", "elsewhere")]
    assert [(s.state, s.step) for s in states if s] == [("failed", 3), ("running", 3)]


def test_a_run_of_a_machine_with_another_time_is_left_alone(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's clock was set back: the run may be alive, and two must not train it."""
    first, second = run_dirs(sweep)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "another-host")
        plant(first, Status("running", 3, 8), "optim.lr=1e-3")
    plant(second, Status("done", 24, 24), "optim.lr=2e-3")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 7200)
    before = first.status_file.read_bytes()
    assert main(["sweep", str(sweep), *SMALL]) == 1
    assert AHEAD in capsys.readouterr().out
    assert (first.status_file.read_bytes(), second.standing()) == (before, "done")
    assert main(["status", "runs"]) == 0
    assert AHEAD in capsys.readouterr().out
    monkeypatch.setattr(time, "time", now)
    assert first.standing() == "running"
    monkeypatch.setattr(time, "time", lambda: now() + 7200)
    assert main(["sweep", str(sweep), *SMALL]) == 0


def test_the_end_of_a_run_that_went_on_elsewhere_is_reported(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left alone. While the other run trains, it is stopped, or done."""
    first, _ = run_dirs(sweep)
    plant(first, Status("running", 3, 8), "optim.lr=1e-3")
    for state, code in (("preempted", 1), ("done", 0)):
        with ExitStack() as stack:
            stack.enter_context(first.lock())

            def ends(
                tasks: list[Task],
                *_: object,
                state: State = state,
                held: ExitStack = stack,  # type: ignore[assignment]
            ) -> list[Outcome]:
                first.write_status(Status(state, 8, 8))
                held.close()
                return [Outcome(task, Status("done", 24, 24)) for task in tasks]

            monkeypatch.setattr(launch, "run_pool", ends)
            assert main(["sweep", str(sweep), *SMALL]) == code
        printed = capsys.readouterr().out
        assert "1 run done, 0 failed" in printed
        said = f"ended elsewhere, preempted: {first.path}" in printed
        assert said == (state == "preempted")


@pytest.mark.parametrize("how", ["failed", "elsewhere"])
def test_a_run_that_is_left_alone_keeps_the_sweep_from_being_done(
    how: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1, also where every other run is done."""
    first, second = run_dirs(sweep)
    with on_host("another-host" if how == "elsewhere" else socket.gethostname()):
        plant(first, Status("failed" if how == "failed" else "running", 3, 8), "optim.lr=1e-3")
    plant(second, Status("done", 24, 24), "optim.lr=2e-3")
    for _ in range(2):
        assert main(["sweep", str(sweep), *SMALL]) == 1
        assert (ELSEWHERE in capsys.readouterr().out) == (how == "elsewhere")


def test_a_launch_goes_on_with_the_sweep_file_that_it_read(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is edited meanwhile; the next launch names the run that is no longer in it."""
    ran = launch.run_pool

    def edited(*given: object) -> object:
        sweep.write_text(sweep.read_text().replace("2e-3", "3e-3"))
        return ran(*given)  # type: ignore[arg-type]

    before = run_dirs(sweep)
    monkeypatch.setattr(launch, "run_pool", edited)
    assert main(["sweep", str(sweep), *SMALL]) == 0
    assert [rundir.standing() for rundir in before] == ["done", "done"]
    assert main(["sweep", str(sweep), *SMALL, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "not part of this request: 1 run here" in printed
    assert before[1].path.name in printed
