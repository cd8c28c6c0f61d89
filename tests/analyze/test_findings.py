"""The summary's sentences, against runs whose events were planted."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stabkit.analyze.across_runs import between_seeds, told_dips
from stabkit.analyze.cells import group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.findings import findings
from stabkit.analyze.report.incidents import all_incidents
from stabkit.analyze.summary import run_table, summary
from stabkit.detect.significance import answer_similarity
from stabkit.rundir import RunDir, Status
from stabkit.store.writer import Writer
from tests.analyze.conftest import DIP, SPIKE, diagnosed, plant_run


def test_what_was_planted_is_told(grid_runs: Diagnoses) -> None:
    told = " ".join(findings(grid_runs)).replace("\n", " ")
    assert "How the 2 dips ended: 2 recovered in full." in told
    began = "began in patch_embed; 1 other layer followed within 2 steps."
    assert f"The burst at step {SPIKE} {began} The burst at step {SPIKE} {began}" in told
    assert "2 of 2 dips had a gradient burst in the 30 steps before." in told
    assert "p = " not in told, "two dips are no sample"
    assert DIP[0] - SPIKE < 30, "as planted"
    assert "What a poorly chosen learning rate costs" in told
    assert "a run that ends below its untrained accuracy counts as untrained" in told
    assert "(learned patch projection)" in told


def test_healthy_runs_have_little_to_tell(tmp_path: Path) -> None:
    plant_run(tmp_path / "run")
    assert findings(diagnosed(tmp_path)) == []


def two_seeds(folder: Path, same: bool) -> None:
    """Two runs that dip in the middle; afterwards the first answers as before, or like nobody."""
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        plant_run(folder / str(seed), f"seed={seed}", seed=seed)
        for part in (folder / str(seed) / "evals").iterdir():
            part.unlink()
        hard, other = rng.random(400), rng.random(400)
        writer = Writer(folder / str(seed), "planted again")
        for step in range(0, 200, 5):
            level = 0.4 if 90 <= step < 115 else 0.6
            difficulty = hard if step < 90 or same or seed else other
            correct = difficulty + 0.03 * rng.normal(size=400) < level
            writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
        writer.flush()


@pytest.mark.parametrize(("same", "severity"), [(True, "benign"), (False, "restart")])
def test_a_restart_is_told_by_other_seeds(tmp_path: Path, same: bool, severity: str) -> None:
    two_seeds(tmp_path, same)
    runs = diagnosed(tmp_path)
    (cell,) = group_cells(runs)
    between = between_seeds(cell.runs)
    assert between is not None
    assert abs(between) < 0.2, "two seeds share no difficulty"
    (dip,) = told_dips(cell.runs[0], max(between, 0.2)).to_dict("records")
    assert dip["severity"] == severity
    assert between_seeds(cell.runs[:1]) is None


@dataclass
class Answered:
    last_answers: NDArray[np.bool_] | None

    @property
    def accuracy(self) -> "Answered":
        return self


def test_seeds_are_as_alike_as_the_mean_over_all_their_pairs() -> None:
    """Runs of other samples, without answers, or with all samples answered alike, make no pair."""
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    answers = [
        *(hard + 0.3 * rng.normal(size=(5, 200)) < 0.5 for _ in range(5)),
        *(rng.random((4, 30)) < 0.4 for _ in range(2)),
        *(np.ones((5, 200), dtype=bool), None),
    ]
    pairs = [
        answer_similarity(one, other)
        for one, other in combinations([bits for bits in answers if bits is not None], 2)
        if one.shape[1] == other.shape[1]
    ]
    between = between_seeds([Answered(bits) for bits in answers])  # type: ignore[misc]
    assert between == pytest.approx(np.nanmean(pairs), rel=1e-12)
    assert between_seeds([Answered(answers[0]), Answered(answers[-2])]) is None  # type: ignore[list-item]


def test_a_drift_makes_a_run_unstable_and_is_an_event(tmp_path: Path) -> None:
    folder = plant_run(tmp_path / "run")
    for part in (folder / "evals").iterdir():
        part.unlink()
    rng = np.random.default_rng(1)
    threshold, writer = rng.random(5000), Writer(folder, "sagging")
    for i in range(100):
        correct = threshold + 0.02 * rng.normal(size=5000) < 0.6 - 0.0006 * max(0, i - 20)
        writer.add_eval(5 * i, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()
    runs = diagnosed(tmp_path)
    (run,) = runs
    assert len(run.accuracy.drifts) == 1
    row = run_table(runs).iloc[0]
    assert (row["verdict"], row["dips"], row["drifts"]) == ("unstable", 0, 1)
    assert 0.03 < row["sag"] < 0.06
    assert "1 run drifted down slowly without a dip" in summary(runs)
    assert [event.kind for event in all_incidents(runs)] == ["drift"]


def test_the_cost_of_a_learning_rate_is_that_of_runs_that_ended(grid: Path) -> None:
    RunDir(grid / "lr 0.02 true 1").write_status(Status("failed", 100, 500))
    told = findings(diagnosed(grid))[-1]
    assert told.endswith(" Left out: 1 unfinished run.")
