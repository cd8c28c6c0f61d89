"""What can be known before the first step is refused: exit code 2, and nothing has changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stabkit.cli import main
from stabkit.rundir import RunDir, Status
from stabkit.train import loop
from tests.conftest import SMALL, small_config, tree


def write_images(root: Path) -> None:
    """Two classes of 8 training and 4 held-out images."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def break_picture(root: Path) -> str:
    file = root / "train/cat/3.png"
    file.write_bytes(file.read_bytes()[:60])
    return "3.png"


def plant_bomb(root: Path) -> str:
    """Write a picture whose file is small and whose pixels would fill the memory."""
    Image.new("1", (30_000, 30_000)).save(root / "val/dog/1.png")
    return "1.png"


def drop_split(root: Path) -> str:
    (root / "val").rename(root / "elsewhere")
    return "it holds"


WORDS = ["data.name=imagefolder", "data.num_train=0", "data.num_heldout=0", "train.batch=4"]


@pytest.mark.lengthy
@pytest.mark.parametrize("damage", [break_picture, plant_bomb, drop_split])
@pytest.mark.parametrize("begun", [False, True])
def test_data_that_cannot_be_read_are_refused_before_training(
    damage: Callable[[Path], str],
    begun: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_images(tmp_path / "images")
    words = ["train", "tiny", *SMALL, *WORDS, f"data.path={tmp_path / 'images'}"]
    run = RunDir(tmp_path / "run")
    words += ["train.steps=3", "optim.warmup_steps=1", "--run-dir", str(run.path)]
    if begun:  # to its end, and as it would be had it been stopped there
        assert main(words) == 0
        run.write_status(Status("preempted", 3, 3))
        capsys.readouterr()
    before = tree(run.path) if begun else None
    named = damage(tmp_path / "images")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stabkit: {run.path}: ")
    assert named in line
    assert tree(run.path) == before if begun else not run.path.exists()


def test_processes_without_their_addresses_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "tiny", *SMALL, "--run-dir", str(tmp_path / "run")]) == 2
    _, problem = capsys.readouterr().err.splitlines()
    assert "WORLD_SIZE=2 announces several processes, but RANK, MASTER_ADDR, MASTER_PORT" in problem
    assert list(tmp_path.iterdir()) == []


@pytest.mark.lengthy
def test_a_folder_is_claimed_once_more_when_its_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes the same run while this one still reads its data."""
    config, load_data = small_config("train.steps=3"), loop.load_data

    def load(*args: object) -> object:
        monkeypatch.undo()
        loop.train(config, RunDir(tmp_path))
        return load_data(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "load_data", load)
    assert loop.train(config, RunDir(tmp_path)).state == "done"
    assert len(RunDir(tmp_path).read_meta()["attempts"]) == 1
