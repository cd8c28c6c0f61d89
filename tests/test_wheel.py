"""The wheel, away from the checkout, is the whole instrument."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stabkit.config import preset_names
from tests.conftest import SMALL
from tests.test_architecture import NO_FRAMEWORK, NO_TORCH

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]

MODULES = """
import atexit

def say():
    import stabkit.integrations
    print("imported:", *sys.modules)

atexit.register(say)
"""


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


@pytest.fixture(scope="module")
def trained(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Train where no framework can be imported; return the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["train", "tiny", *SMALL, "train.steps=5"]
    return folder, run(installed, folder, *words, before=NO_FRAMEWORK + MODULES)


def test_it_trains_five_steps_from_a_packaged_preset(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert "done at step 5 of 5" in printed
    assert list((folder / "runs" / "train").glob("tiny-*/scalars/part-*.parquet"))


def test_the_monitor_needs_no_framework(trained: tuple[Path, str]) -> None:
    _, printed = trained
    needed = {"stabkit.monitor.monitor", "stabkit.integrations", "stabkit.train.loop"}
    assert needed <= imported(printed)


def test_a_first_step_waits_for_no_import_it_can_do_without(trained: tuple[Path, str]) -> None:
    _, printed = trained
    assert not {"timm", "torchvision", "scipy", "matplotlib"} & imported(printed)


def imported(printed: str) -> set[str]:
    (line,) = (line for line in printed.splitlines() if line.startswith("imported: "))
    return set(line.split()[1:])


def test_it_holds_the_presets_and_no_study_or_test(installed: Path) -> None:
    assert {p.name for p in installed.iterdir() if p.suffix != ".dist-info"} == {"stabkit"}
    presets = {p.stem for p in (installed / "stabkit" / "presets").glob("*.yaml")}
    assert presets == set(preset_names())
    assert (installed / "stabkit" / "py.typed").exists()
    room = installed / "stabkit" / "analyze" / "report"
    page = {p.name for p in room.iterdir() if p.suffix in (".j2", ".css", ".js")}
    assert page == {"report.html.j2", "report.css", "report.js", "scroll.js"}
