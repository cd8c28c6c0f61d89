"""Scores of runs whose dips are known."""

import math
from pathlib import Path

import numpy as np
import pytest

from stabkit.analyze import accuracy_events
from stabkit.analyze.accuracy_events import Accuracy, Falls, falls
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.scores import run_scores
from stabkit.analyze.verdict import is_unstable
from stabkit.store.writer import Writer
from tests.analyze.conftest import STEPS, diagnosed, plant_run


def test_a_run_is_scored_by_what_its_evaluations_hold(grid_runs: Diagnoses) -> None:
    runs = grid_runs
    frame = run_scores(runs).set_index("run")
    assert len(frame) == 8
    for run in runs:
        row, found = frame.loc[run.name], run.accuracy.dips
        accuracy = 100 * run.evals("knn_heldout")["value"].to_numpy()
        fifth = round(len(accuracy) / 5)
        running = [np.median(accuracy[i : i + fifth]) for i in range(len(accuracy) - fifth + 1)]
        assert row["level"] == pytest.approx(np.median(accuracy[-fifth:]))
        assert row["best"] == pytest.approx(max(running))
        assert row["untrained"] == accuracy[0]
        assert row["dips"] == len(found) == (1 if "0.02 false" in run.name else 0)
        assert row["lost_steps"] == sum(found["recovery"] - found["onset"])
        assert row["exposure"] == STEPS - row["lost_steps"]
        assert row["dip_rate"] == pytest.approx(1000 * len(found) / row["exposure"])
        assert row["lost_points"] == row["best"] - row["level"], "one quantity in every run"
    assert set(frame.loc[is_unstable(frame)].index) == {"lr 0.02 false 0", "lr 0.02 false 1"}


@pytest.mark.lengthy
def test_a_fall_for_good_leaves_no_exposure(
    whole_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that never comes back has one dip; in its steps no other could begin."""

    def for_good(seen: Accuracy) -> Falls:
        found = falls(seen)
        return found._replace(dips=found.dips.assign(recovery=math.nan, end=float(STEPS)))

    calm = run_scores(diagnosed(whole_grid)).set_index("run")
    monkeypatch.setattr(accuracy_events, "falls", for_good)
    frame = run_scores(diagnosed(whole_grid)).set_index("run")
    bad = is_unstable(frame)
    assert bad.sum() == 2
    assert (frame.loc[bad, "exposure"] + frame.loc[bad, "lost_steps"] == STEPS).all()
    assert (frame.loc[bad, "dip_rate"] > calm.loc[bad, "dip_rate"]).all(), "it looks no calmer"


def test_too_few_evaluations_count_on_no_side(tmp_path: Path) -> None:
    folder = plant_run(tmp_path / "run")
    for part in (folder / "evals").glob("*"):
        part.unlink()
    writer = Writer(folder, "planted")
    for step in (0, 5, 10):
        writer.add_eval(step, "knn_heldout", 0.5, 0.1, 20, 0.07, np.arange(100) < 50)
    writer.flush()
    frame = run_scores(diagnosed(tmp_path))
    assert frame["on_accuracy"].tolist() == [False]
    assert frame["level"].tolist() == [50]


def test_a_run_without_evaluations_has_no_scores(tmp_path: Path) -> None:
    folder = plant_run(tmp_path / "run")
    for part in (folder / "evals").glob("*"):
        part.unlink()
    (row,) = run_scores(diagnosed(tmp_path)).to_dict("records")
    assert (row["dips"], row["steps"], row["on_accuracy"]) == (0, 0, False)
    assert math.isnan(row["level"])
    assert math.isnan(row["dip_rate"])
