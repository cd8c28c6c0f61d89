"""Folders that are copied or moved while they are trained: each is one run, and none is mixed."""

import shutil
from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.rundir import RunDir
from stabkit.train import loop
from tests.conftest import SMALL
from tests.train.test_resume import assert_same_run


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/run`, with a copy of it as it was at step 14 that comes first by name."""
    monkeypatch.chdir(tmp_path)
    act_at_step_14(monkeypatch, lambda: shutil.copytree("runs/run", "runs/a copy"))
    assert main(["train", "tiny", *SMALL, "--run-dir", "runs/run"]) == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    return Path("runs/run")


def act_at_step_14(monkeypatch: pytest.MonkeyPatch, act: object) -> None:
    save = loop.save_state

    def acting(state: object, config: object, step: int, path: Path) -> None:
        save(state, config, step, path)  # type: ignore[arg-type]
        if step == 14:
            act()  # type: ignore[operator]

    monkeypatch.setattr(loop, "save_state", acting)


@pytest.mark.lengthy
def test_a_copy_is_lost_and_the_run_itself_is_analyzed(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["status", "runs"]) == 0
    copy, run = capsys.readouterr().out.splitlines()
    assert copy.startswith("lost")
    assert "no sign of life since" in copy
    assert run.startswith("done")
    assert main(["analyze", "runs"]) == 0
    printed = capsys.readouterr()
    assert "runs: 1 run (1 done)" in printed.out
    assert f"runs/a copy: left out, it has the settings and the seed of {trained}" in printed.err


@pytest.mark.lengthy
def test_a_copy_goes_on_by_itself(trained: Path) -> None:
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    assert main(["train", "tiny", *SMALL, "--run-dir", "runs/a copy"]) == 0
    assert_same_run(trained, Path("runs/a copy"))
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


@pytest.mark.lengthy
def test_a_folder_that_is_moved_in_training_is_not_made_anew(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        act_at_step_14(patch, lambda: Path("other").rename("moved"))
        assert main(["train", "tiny", *SMALL, "--run-dir", "other"]) == 1
    assert "the run's folder was deleted or moved" in capsys.readouterr().err
    assert not Path("other").exists()
    assert RunDir(Path("moved")).standing() == "lost"
    assert main(["train", "tiny", *SMALL, "--run-dir", "moved"]) == 0
    assert_same_run(trained, Path("moved"))
