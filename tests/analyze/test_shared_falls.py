"""Falls that the seeds of a setting share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.report.headline import tell_verdict
from stabkit.analyze.shared_falls import mean_falls, shared_falls
from stabkit.analyze.summary import run_table, summary
from stabkit.cli import main
from stabkit.config import save_config
from stabkit.detect import find_dips, find_drift
from stabkit.detect.simulate import healthy
from stabkit.rundir import RunDir, Status
from stabkit.store.reader import load
from stabkit.store.writer import Writer
from tests.conftest import small_config
from tests.detect.sequential import rarely

EVALS, EVERY, SAMPLES = 121, 5, 1000
STEPS = EVERY * np.arange(EVALS)
LOWEST = 60  # evaluations: where the fall ends


def accuracies(runs: int, points: float, seed: int = 0) -> NDArray[np.float64]:
    """Return runs at .5 that fall over 30 evaluations and come back over 30; restless noise."""
    rng = np.random.default_rng(seed)
    noise = np.zeros((runs, EVALS))
    shocks = 0.02 * rng.normal(size=noise.shape)
    for i in range(1, EVALS):
        noise[:, i] = 0.7 * noise[:, i - 1] + shocks[:, i]
    fall = np.clip(1 - np.abs(np.arange(EVALS) - LOWEST) / 30, 0, None)
    return 0.5 - points / 100 * fall + noise


def plant(folder: Path, values: NDArray[np.float64]) -> Path:
    """Write a run a row of `values`, all of one setting."""
    for seed, row in enumerate(values):
        run = RunDir(folder / f"seed{seed}")
        run.path.mkdir(parents=True)
        run.config_file.write_text(save_config(small_config(f"seed={seed}")))
        run.write_status(Status("done", int(STEPS[-1]), int(STEPS[-1])))
        writer = Writer(run.path, "planted")
        for step, value in zip(STEPS[np.isfinite(row)], row[np.isfinite(row)], strict=True):
            correct = np.random.default_rng(seed).random(SAMPLES) < value
            writer.add_eval(int(step), "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
        writer.flush()
    return folder


def alone(values: NDArray[np.float64]) -> int:
    """Count the runs that show a fall by themselves."""
    return sum(
        len(dips := find_dips(STEPS, row)) + len(find_drift(STEPS, row, dips=dips)) > 0
        for row in values
    )


def test_ten_seeds_show_what_few_of_them_show_alone() -> None:
    values = accuracies(10, 9)
    (fall,) = mean_falls(STEPS, values).itertuples()
    assert alone(values) < len(values)
    assert fall.onset < STEPS[LOWEST] < fall.recovery
    assert abs(fall.trough - STEPS[LOWEST]) <= 8 * EVERY
    assert 0.05 < fall.depth < 0.13


def test_the_p_value_is_that_of_the_falls_of_the_runs() -> None:
    falls = np.array([0.04, 0.05, 0.06, 0.05])
    values = np.full((4, EVALS), 0.5)
    values[:, 40:80] -= falls[:, None]
    (fall,) = mean_falls(STEPS, values).itertuples()
    expected = stats.ttest_1samp(falls, 0.0, alternative="greater").pvalue
    assert fall.p_value == pytest.approx(expected)
    assert fall.depth == pytest.approx(0.05)
    falls[:3] = -0.01, 0.0, 0.01  # one run in four falls
    values[:, 40:80] = 0.5 - falls[:, None]
    assert mean_falls(STEPS, values).empty


@pytest.mark.lengthy
def test_seeds_that_do_not_fall_show_nothing() -> None:
    def alarms() -> Iterator[bool]:
        for seed in range(100):
            runs = [healthy("restless", 5 * seed + i) for i in range(5)]
            yield len(mean_falls(runs[0].step, np.stack([run.accuracy for run in runs]))) > 0

    assert rarely(alarms(), 0.01, 100)


def test_one_run_does_not_speak_for_the_others() -> None:
    values = np.concatenate([accuracies(1, 40), accuracies(4, 0, seed=1)])
    mean = values.mean(axis=0)
    assert len(find_dips(STEPS, mean)) + len(find_drift(STEPS, mean)) > 0
    assert mean_falls(STEPS, values).empty


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("ten"), accuracies(10, 9))


@pytest.mark.lengthy
def test_the_summary_and_the_report_say_it(ten: Path, tmp_path: Path) -> None:
    said = summary(diagnose(load(ten)))
    (fall,) = shared_falls(diagnose(load(ten)))
    assert fall.alone < len(fall.cell.runs)
    sentence = f"the mean of 10 runs falls by {100 * fall.depth:.1f} points from step {fall.onset}"
    assert sentence in said
    page = tmp_path / "report.html"
    assert main(["report", str(ten), "-o", str(page)]) == 0
    assert sentence in page.read_text()


@pytest.mark.lengthy
def test_a_run_that_stopped_early_hides_no_fall_of_the_others(tmp_path: Path) -> None:
    values = accuracies(10, 9)
    (before,) = mean_falls(STEPS, values[:9]).itertuples()
    values[9, 20:] = np.nan
    (fall,) = shared_falls(diagnose(load(plant(tmp_path, values))))
    assert len(fall.cell.runs) == 9
    assert fall.onset == before.onset


@pytest.mark.lengthy
def test_no_clean_bill_where_only_the_mean_falls(tmp_path: Path) -> None:
    runs = diagnose(load(plant(tmp_path, accuracies(8, 4.5, seed=12))))
    (fall,) = shared_falls(runs)
    assert fall.alone == 0, "no run shows it, with the samples' answers either"
    said = summary(runs)
    assert "no sign of instability" not in said
    assert "by itself, but in the mean of several" in said
    assert "no run shows it by itself" in said
    table = run_table(runs)
    assert set(table["verdict"]) == {"stable"}
    assert tell_verdict(runs, table).mood == "warn"


@pytest.mark.lengthy
def test_two_runs_have_no_mean(tmp_path: Path) -> None:
    values = accuracies(2, 8, seed=20)
    assert len(mean_falls(STEPS, values)) == 1, "three of a kind would be told"
    assert shared_falls(diagnose(load(plant(tmp_path, values)))) == []
