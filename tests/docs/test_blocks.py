"""The Python on the pages runs as it stands; docs/monitor.md and docs/replay.md have own tests."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stabkit.cli import main
from tests.conftest import SMALL
from tests.docs.test_pages import tool
from tests.test_readme import first_block

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.M | re.S)


@pytest.mark.lengthy
def test_the_page_about_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On planted runs; its training is cut down to a second."""
    plant = tool("planted").plant
    for rate in (0.004, 0.04):
        for arm, frozen in (("learned", "false"), ("frozen", "true")):
            folder = tmp_path / "runs" / "lr_grid" / f"{arm}-{rate}"
            plant(folder, arm, rate, 0, [f"model.freeze_patch_embed={frozen}"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(DOCS.parent / "analysis" / "lr_grid.py")])
    monkeypatch.setenv("MPLBACKEND", "agg")
    small = [word for word in SMALL if not word.startswith(("train.steps", "optim.warmup"))]
    names: dict[str, Any] = {}
    for code in blocks("python.md"):
        exec(code.replace('["train.steps=40"', f'[*{small}, "train.steps=12"'), names)
    assert len(names["high"]) == 2
    assert names["run"].status().state == "done"
    assert Path("knn.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the blocks of the tutorial after the first, which is in `damaged.py` here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loop, *others = blocks("tutorial.md")
    Path("damaged.py").write_text(loop)
    yield others
    sys.modules.pop("damaged", None)
    importlib.invalidate_caches()


@pytest.mark.lengthy
def test_the_tutorial(tutorial: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its last block is cut down to the seed that the page looks at."""
    once, look, _, more = tutorial
    said = [re.findall(r"\S+", line) for line in blocks("tutorial.md", "text")[1].splitlines()]
    names: dict[str, Any] = {}
    exec(once, names)
    assert main(["analyze", "runs/plain"]) == 0
    printed = capsys.readouterr().out
    assert "The run trained unstably. It finished without any error" in printed
    assert re.search(r"The deepest dip.* points below its level\nat step 1\d\d", printed)
    exec(look, names)
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()] == said
    exec(more.replace("range(3)", "[1]").replace("(0, 2)", "()"), names)
    capsys.readouterr()
    assert main(["analyze", "runs/plain", "runs/clipped"]) == 0
    assert re.search(r"^clipped: 0 dips in", capsys.readouterr().out, re.M)


@pytest.mark.slow
def test_the_branches_of_the_tutorial(
    tutorial: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, branches, _ = tutorial
    exec(branches, {})
    printed = capsys.readouterr().out
    assert "8 of 8 placebos from step 125 repeat the event" in printed
    assert "clip at 1: prevented. 0 of 3 repeat the event" in printed


@pytest.mark.processes
def test_the_readme_needs_no_more_than_the_page_on_installing_says(tmp_path: Path) -> None:
    """The loop, `analyze` and `report`, where timm, torchvision and submitit cannot be imported."""
    refuse = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('timm', 'torchvision', 'submitit'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
    )
    act = "from stabkit.cli import main\n" + "".join(
        f"assert main(['{verb}', 'runs/mine']) == 0\n" for verb in ("analyze", "report")
    )
    done = subprocess.run(
        [sys.executable, "-c", refuse + first_block("README.md") + act],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
