"""The wheel, away from the checkout, is the whole instrument."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stabkit.config import preset_names
from tests.conftest import SMALL
from tests.test_architecture import NO_TORCH

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *words: str, before: str = "") -> str:
    code = f"{before}\nimport sys, stabkit, stabkit.cli; print(stabkit.__file__); "
    code += "sys.exit(stabkit.cli.main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    return done.stdout


def test_help_needs_no_torch(installed: Path, tmp_path: Path) -> None:
    assert "sweep" in run(installed, tmp_path, "--help", before=NO_TORCH)


def test_it_trains_five_steps_from_a_packaged_preset(installed: Path, tmp_path: Path) -> None:
    printed = run(installed, tmp_path, "train", "tiny", *SMALL, "train.steps=5")
    assert "done at step 5 of 5" in printed
    assert list((tmp_path / "runs" / "train").glob("tiny-*/scalars/part-*.parquet"))


def test_it_holds_the_presets_and_no_study_or_test(installed: Path) -> None:
    assert {p.name for p in installed.iterdir() if p.suffix != ".dist-info"} == {"stabkit"}
    presets = {p.stem for p in (installed / "stabkit" / "presets").glob("*.yaml")}
    assert presets == set(preset_names())
    assert (installed / "stabkit" / "py.typed").exists()
    room = installed / "stabkit" / "analyze" / "report"
    page = {p.name for p in room.iterdir() if p.suffix in (".j2", ".css", ".js")}
    assert page == {"report.html.j2", "report.css", "report.js", "scroll.js"}
