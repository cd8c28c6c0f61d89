"""The GPU program continues where it stopped, and its rehearsal passes; nothing is timed."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import measurements, page, part_study

ROOT = Path(__file__).parents[1]

FACTS = {"device": "CPU", "sources": "abc", "quick": False, "date": "2026-11-28"}
LACKING = ("hatchling", "selenium", "jupytext", "plotly", "nbclient", "wandb", "kornia", "faiss")


def part(folder: Path, **changed: Any) -> Any:
    return measurements.Part(folder / "step.json", "command", FACTS | changed, ["what", "value"])


def one(value: str, failed: bool = False) -> Any:
    return measurements.Measurement([["step", value]], values={"value": value}, failed=failed)


def test_a_part_continues_after_its_last_measurement(tmp_path: Path) -> None:
    part(tmp_path).add("a", one("1"))
    again = part(tmp_path, date="2026-11-29")
    assert again.has("a")
    assert again.values("a") == {"value": "1"}
    assert not again.has("b")
    again.add("b", one("2"))
    again.finish()
    content = measurements.read(tmp_path / "step.json")
    assert content["complete"]
    assert list(content["measurements"]) == ["a", "b"]


@pytest.mark.parametrize("changed", [{"device": "H100"}, {"sources": "def"}, {"quick": True}])
def test_measurements_of_something_else_do_not_count(changed: Any, tmp_path: Path) -> None:
    part(tmp_path).add("a", one("1"))
    assert not part(tmp_path, **changed).has("a")


def test_a_measurement_that_failed_is_tried_again_and_fails_the_part(tmp_path: Path) -> None:
    failing = part(tmp_path)
    failing.add("a", one("NOT VALID", failed=True))
    assert not failing.has("a")
    with pytest.raises(SystemExit) as end:
        failing.finish()
    assert end.value.code == 1
    assert not measurements.read(tmp_path / "step.json")["complete"]


def test_the_page_shows_the_tables_between_its_markers(tmp_path: Path) -> None:
    facts = {"memory_gib": 80.0, "driver": "580", "cuda": "13.0", "cores": 2, "python": "3.12"}
    facts |= {"versions": {"torch": "2.11", "wandb": None}, "commit": None}
    part(tmp_path, **facts).add("a", one("x|y"))
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    page.write_page(file, tmp_path, ["tests", "step"])
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "old" not in text
    assert "| step | x\\|y |" in text
    assert "driver 580, CUDA 13.0" in text
    assert "**Not complete.**" in text


def program(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--device", "cpu", "--quick", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_rehearsal_measures_everything_and_only_once(tmp_path: Path) -> None:
    """It needs neither git nor the packages that a machine with a GPU may lack."""
    blocker = f"""
import sys
class Lacking:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {LACKING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking())
"""
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "sitecustomize.py").write_text(blocker)
    lacking = os.pathsep.join([str(tmp_path / "lacking"), str(ROOT)])
    results = tmp_path / "results"
    first = program("--results", str(results), PYTHONPATH=lacking, GIT_DIR="/nowhere")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "All is measured" in first.stdout
    for file in results.glob("*.json"):
        content = json.loads(file.read_text())
        assert content["complete"], file
        assert content["circumstances"]["commit"] is None
    again = program("--results", str(results))
    assert again.returncode == 0
    assert again.stdout.count(": complete for these sources") == 5


@pytest.mark.slow
def test_the_study_stops_in_time_and_continues(tmp_path: Path) -> None:
    given = argparse.Namespace(device="cpu", quick=True, steps=60, data=None, results=tmp_path)
    assert not part_study.train(given, 0, tmp_path, time.monotonic() + 5, 1)
    assert part_study.train(given, 0, tmp_path, time.monotonic() + 1800, 1)
    statuses = [json.loads(f.read_text())["state"] for f in tmp_path.rglob("status.json")]
    assert statuses == ["done"] * 6
