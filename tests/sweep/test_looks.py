"""A curve comes while a run trains, and its record is not read at every look."""

from pathlib import Path

import pytest

from stabkit.store.writer import Writer
from stabkit.sweep import looks
from stabkit.sweep.looks import Looks
from stabkit.sweep.status import Row


def test_a_curve_comes_with_the_first_steps_and_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr(looks.time, "monotonic", lambda: clock)
    seen = Looks()
    writer = Writer(tmp_path, "run")

    def curve(step: int) -> int:
        return len(seen.of(Row("run", "running", step, 100, path=str(tmp_path))).curve)

    assert curve(0) == 0
    for step in (0, 5):
        writer.add_accuracies([step], "knn_heldout", [0.3], 0.1, 100, 20, 0.07)
    writer.flush()
    assert curve(6) == 2
    writer.add_accuracies([10], "knn_heldout", [0.4], 0.1, 100, 20, 0.07)
    writer.flush()
    assert curve(11) == 2, "not at every look"
    clock = 6.0
    assert curve(12) == 3


def test_verdicts_stay_when_as_many_runs_were_judged_as_ever_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "JUDGED", 2)
    rows = []
    for name in ("a", "b", "c"):
        writer = Writer(tmp_path / name, name)
        steps = range(0, 300, 10)
        writer.add_accuracies(steps, "knn_heldout", [s / 400 for s in steps], 0.1, 100, 20, 0.07)
        writer.flush()
        rows.append(Row(name, "done", 300, 300, path=str(tmp_path / name)))
    seen = Looks()
    for _ in range(2):
        assert [seen.of(row).verdict for row in rows] == ["stable", "stable", None]
