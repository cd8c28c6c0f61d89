"""A run on a disk that gets full says so in its status, and goes on when there is room again."""

from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.rundir import RunDir
from stabkit.train import loop
from tests.conftest import SMALL
from tests.full import fill, no_room, small_disk


def test_the_reason_is_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    save = loop.save_state

    def full_from_step_14(state: object, config: object, step: int, path: Path) -> None:
        if step == 14:
            no_room(patch)
        save(state, config, step, path)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", full_from_step_14)
        assert main(["train", "tiny", *SMALL, "--run-dir", str(run)]) == 1
    assert_says_why(run, capsys)
    assert main(["train", "tiny", *SMALL, "--run-dir", str(run)]) == 0


def test_the_reason_is_in_the_status_of_a_disk_that_is_really_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        run = disk / "run"
        save = loop.save_state

        def full_from_step_14(state: object, config: object, step: int, path: Path) -> None:
            if step == 14:
                fill(disk)
            save(state, config, step, path)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_state", full_from_step_14)
            assert main(["train", "tiny", *SMALL, "--run-dir", str(run)]) == 1
        assert_says_why(run, capsys)
        (disk / "filler").unlink()
        assert main(["train", "tiny", *SMALL, "--run-dir", str(run)]) == 0
        assert RunDir(run).standing() == "done"


def assert_says_why(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert RunDir(run).standing() == "failed"
    assert "No space left on device" in capsys.readouterr().err
    assert main(["status", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("failed")
    assert "OSError: [Errno 28] No space left on device" in printed
