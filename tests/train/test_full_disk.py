"""A disk that is really full: the run fails with the reason in its status, and loses nothing."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stabkit.cli import main
from stabkit.rundir import RunDir
from stabkit.train import loop
from tests.conftest import SMALL, small_config
from tests.full import no_room
from tests.train.test_resume import assert_same_run, at_call

pytestmark = pytest.mark.processes

SIZE = 32 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip("mounting a small disk needs root's rights")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"x" * 4096)


@pytest.mark.parametrize("at", [3, 7])
def test_a_full_disk_is_the_reason_of_a_failed_run(
    at: int, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("train.steps=10", "runtime.checkpoint_every=2")
    filler, step = small_disk / "filler", loop.train_step

    def filling(*given: Any) -> None:
        fill(filler)
        step(*given)

    rundir = RunDir(small_disk / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", at_call(step, at, filling))
        with pytest.raises(OSError, match="No space left"):
            loop.train(config, rundir)
    assert filler.exists()
    status = rundir.read_status()
    assert status is not None
    assert status.state == "failed"
    assert "No space left" in str(status.reason)
    assert rundir.standing() == "failed"
    filler.unlink()
    assert loop.train(config, rundir).state == "done"
    loop.train(config, RunDir(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", rundir.path)


def test_the_status_says_why_the_disk_failed_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, step = tmp_path / "run", loop.train_step
    with monkeypatch.context() as patch:

        def filling(*given: Any) -> None:
            no_room(patch)
            step(*given)

        patch.setattr(loop, "train_step", at_call(step, 9, filling))
        assert main(["train", "tiny", *SMALL, "--run-dir", str(run)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert main(["status", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("failed")
    assert "OSError: [Errno 28] No space left on device" in printed
    assert main(["train", "tiny", *SMALL, "--run-dir", str(run)]) == 0
