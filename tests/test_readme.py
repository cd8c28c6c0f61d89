"""The README's loop, pasted into a fresh file, runs and ends in a verdict."""

import re
import runpy
from pathlib import Path

import pytest

from stabkit.cli import main

ROOT = Path(__file__).parents[1]


def first_block(page: str) -> str:
    found = re.search(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.M | re.S)
    assert found, f"{page}: no Python block"
    return found[1]


def test_the_first_block_is_the_same_on_both_pages() -> None:
    assert first_block("README.md") == first_block("docs/monitor.md")


@pytest.mark.lengthy
def test_the_loop_of_the_readme_ends_in_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(first_block("README.md"))
    runpy.run_path("mine.py", run_name="__main__")
    assert capsys.readouterr().out == "stable\n"  # as the README says
    assert main(["analyze", "runs/mine"]) == 0
    said = capsys.readouterr().out
    assert "no sign of instability was found" in said
    assert re.search(r"^mine +- +stable ", said, re.M)
