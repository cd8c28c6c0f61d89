"""The documentation site is built without a warning, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not (find_spec("material") and find_spec("mkdocstrings")),
        reason="needs mkdocs-material and mkdocstrings: pip install 'stabkit[docs]'",
    ),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    loads = r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)"
    for page in site.rglob("*.html"):
        assert not re.findall(loads, page.read_text("utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", sheet.read_text("utf-8")), sheet


def test_every_study_has_a_page(site: Path) -> None:
    studies = {path.stem for path in (ROOT / "sweeps").glob("*.yaml")}
    assert {path.stem for path in (site / "studies").glob("*.html")} == studies


def test_the_reference_holds_signatures_and_docstrings(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "api.html").read_text("utf-8"))
    assert "Load every run at or below" in text
    assert "find_dips" in text


def test_the_rooms_are_drawn_without_mermaid(site: Path) -> None:
    page = (site / "architecture.html").read_text("utf-8")
    assert page.count('class="floor"') == len(re.findall(r"subgraph", picture()))
    assert "mermaid" not in page.split("<article")[1].split("</article")[0]


def picture() -> str:
    return (ROOT / "docs" / "architecture.md").read_text("utf-8")
