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
