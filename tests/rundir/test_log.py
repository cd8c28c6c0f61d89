"""The log of what happened."""

import json
from pathlib import Path

import pytest

from stabkit.rundir import LeftOutWarning, LinkedError, RunDir
from stabkit.store.writer import next_part


def test_events_survive_a_torn_line_and_trim_keeps_the_lifecycle(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_entry("start", 0)
    run.append_entry("nonfinite", 4, layers=["norm"])
    run.append_entry("nonfinite", 9)
    with run.events_file.open("a") as file:
        file.write('{"kind": "nonf')
    assert [e["kind"] for e in run.read_entries()] == ["start", "nonfinite", "nonfinite"]
    run.trim_entries(9)
    run.append_entry("resume", 9)
    kinds = [(e["kind"], e["step"]) for e in run.read_entries()]
    assert kinds == [("start", 0), ("nonfinite", 4), ("resume", 9)]
    for line in run.events_file.read_text().splitlines():
        json.loads(line)


def test_events_are_not_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "made")
    with pytest.raises(LinkedError, match=r"events\.jsonl: is a link"):
        RunDir(tmp_path).append_entry("start", 0)
    (tmp_path / "layers").symlink_to(tmp_path)
    with pytest.raises(LinkedError, match="layers: is a link"):
        next_part(tmp_path / "layers")
    assert not (tmp_path / "made").exists()


def test_an_entry_behind_a_torn_line_is_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_entry("start", 0)
    with run.events_file.open("a") as file:
        file.write('{"kind": "nonf')
    run.append_entry("note", 3)
    with pytest.warns(LeftOutWarning, match="1 line left out"):
        assert [entry["kind"] for entry in run.read_entries()] == ["start", "note"]
