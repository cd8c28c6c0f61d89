import json
from pathlib import Path

import pytest

from stabkit.analyze.report.headline import tell_verdict
from stabkit.analyze.summary import run_table, summary
from stabkit.rundir import RunDir, Status
from tests.analyze.conftest import diagnosed, evaluate_again, plant_run


def test_a_failed_run_says_why_and_is_no_good_news(tmp_path: Path) -> None:
    run = RunDir(plant_run(tmp_path / "a"))
    run.write_status(Status("failed", 500, 500, reason="AssertionError:\n  bad 40"))
    runs = diagnosed(tmp_path)
    words = "failed at step 500: AssertionError: bad 40."
    assert words in summary(runs)
    verdict = tell_verdict(runs, run_table(runs))
    assert verdict.mood == "warn"
    assert verdict.headline == "No sign of instability in 1 run, which failed"
    assert any(words in line for line in verdict.lines)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.lengthy
def test_of_many_failed_runs_three_are_named(tmp_path: Path) -> None:
    for seed in range(5):
        run = RunDir(plant_run(tmp_path / str(seed), f"seed={seed}"))
        run.write_status(Status("failed", 500, 500, reason="OSError: disk"))
    text = summary(diagnosed(tmp_path))
    assert text.count("OSError: disk.") == 3
    assert "2 more failed or lost runs." in text


def test_what_a_monitor_failed_to_record_is_told(tmp_path: Path) -> None:
    run = RunDir(plant_run(tmp_path / "a"))
    entry = {"time": "2026-01-01", "kind": "monitor_failed", "name": "steps", "reason": "no step"}
    with run.events_file.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    runs = diagnosed(tmp_path)
    assert ": no step." in summary(runs)
    assert any(": no step." in line for line in tell_verdict(runs, run_table(runs)).lines)
    assert tell_verdict(runs, run_table(runs)).mood == "good"


def test_runs_of_equal_evaluations_are_named(tmp_path: Path) -> None:
    """As where one log was converted twice; two seeds differ."""
    for seed, same in enumerate((0, 1, 0)):
        evaluate_again(plant_run(tmp_path / f"r{seed}", f"seed={seed}"), 0.3, same)
    runs = diagnosed(tmp_path)
    for lines in (summary(runs).split("\n\n"), tell_verdict(runs, run_table(runs)).lines):
        (told,) = [text for line in lines if "the same evaluations" in (text := one_line(line))]
        assert "seed 0, " in told
        assert "seed 2 hold" in told
        assert "seed 1" not in told
