"""Runs that outlive their launcher or worker, or go on elsewhere: the sweep is not done then."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.config import load_config, save_config
from stabkit.rundir import RunDir, Status
from stabkit.sweep.grid import load_sweep
from tests.conftest import SMALL
from tests.sweep.test_pool import _wait_for_step, sweep

__all__ = ["sweep"]  # the fixture

Launched = tuple["subprocess.Popen[str]", int]
LONG = [*SMALL, "optim.lr=1e-3", "train.steps=100000", "data.num_train=640"]
ELSEWHERE = "1 run goes on elsewhere, so the sweep is not done"


def run_dirs(sweep: Path, *settings: str) -> list[RunDir]:
    cells = load_sweep(sweep, None, [*SMALL, *settings]).cells
    return [RunDir(Path("runs/demo") / cell.folder) for cell in cells]


def plant(rundir: RunDir, status: Status, *settings: str) -> None:
    rundir.path.mkdir(parents=True)
    rundir.config_file.write_text(save_config(load_config("tiny", [*SMALL, *settings])))
    rundir.write_status(status)


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def launched(sweep: Path) -> Iterator[Launched]:
    """A launcher and its one run, which has a checkpoint; both are killed at the end."""
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


def test_a_run_outlives_its_worker_and_the_launcher_says_so(
    launched: Launched,
) -> None:
    launcher, victim = launched
    os.kill(parent_of(victim), signal.SIGKILL)
    printed, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 1
    assert "goes on by itself: runs/demo" in printed
    assert "0 runs done, 0 failed, 0 stopped, 1 going on" in printed
    assert ELSEWHERE in printed
    os.kill(victim, 0)


@pytest.mark.parametrize("how", ["failed", "elsewhere"])
def test_cells_that_are_left_alone_count(
    how: str, sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other cell is trained; the sweep is not done all the same."""
    first, second = run_dirs(sweep)
    own: Callable[[], str] = socket.gethostname
    if how == "elsewhere":
        monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    plant(first, Status("failed" if how == "failed" else "running", 3, 8), "optim.lr=1e-3")
    monkeypatch.setattr(socket, "gethostname", own)
    assert main(["sweep", str(sweep), *SMALL]) == 1
    printed = capsys.readouterr().out
    assert second.standing() == "done"
    assert (ELSEWHERE in printed) == (how == "elsewhere")
    assert main(["sweep", str(sweep), *SMALL]) == 1


def test_a_sweep_file_that_is_edited_meanwhile_changes_nothing_of_a_launch(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was read is what runs; the next launch names what is no cell any more."""
    from stabkit.sweep import launch

    pool = launch.run_pool

    def edited(*given: object) -> object:
        sweep.write_text(sweep.read_text().replace("2e-3", "3e-3"))
        return pool(*given)  # type: ignore[arg-type]

    before = run_dirs(sweep)
    monkeypatch.setattr(launch, "run_pool", edited)
    assert main(["sweep", str(sweep), *SMALL]) == 0
    assert [rundir.standing() for rundir in before] == ["done", "done"]
    assert main(["sweep", str(sweep), *SMALL, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "1 runs here are no cells of this request" in printed
    assert before[1].path.name in printed
