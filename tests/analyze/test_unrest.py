"""Unrest makes a run unstable, and is told once wherever events are told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.overlap import not_covered
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.report.incidents import all_incidents
from stabkit.analyze.summary import run_table
from stabkit.runs import load
from tests.analyze.test_any_run import converted, falling_loss, told

SIZE = 200


def alternating() -> np.ndarray:
    """Return an accuracy of 80 % that is 50 % at every other evaluation of the second half."""
    at = np.arange(SIZE)
    noise = 0.005 * np.random.default_rng(6_000_000).normal(size=SIZE)
    rising = 0.1 + 0.7 * (1 - np.exp(-at / 20))
    return np.clip(rising - 0.3 * ((at % 2 == 0) & (at > 100)) + noise, 0, 1)


def swinging() -> np.ndarray:
    """Return a loss that swings in its second half, every ten values, to double and to half."""
    at = np.arange(SIZE)
    return falling_loss() * np.where(at > 100, 2.0 ** np.sin(2 * np.pi * at / 10), 1)


def test_an_accuracy_that_alternates_is_unstable(tmp_path: Path, capsys) -> None:
    run = converted(tmp_path, {"val_acc": alternating()})
    assert run.verdict == "unstable"
    (event,) = run.events().itertuples()
    assert (event.kind, event.end, event.layer) == ("unrest", 1990, None)
    assert event.onset == pytest.approx(1000, abs=50)
    assert run.events("unrest")["size"].tolist() == [event.size]
    text = told(run, capsys)
    assert "1 stretch of unrest in 1 run" in text
    assert "val_acc swings between 49." in text
    assert f"from step {event.onset:,} to step 1,990" in text


def test_a_loss_that_begins_to_swing_is_unstable(tmp_path: Path, capsys) -> None:
    run = converted(tmp_path, {"loss": swinging()})
    assert run.verdict == "unstable"
    (event,) = run.events("unrest").itertuples()
    assert event.layer == "loss"
    assert event.onset == pytest.approx(1000, abs=150)
    assert "loss swings between 1." in told(run, capsys)


@pytest.mark.parametrize("size", [60, 100, 200])
@pytest.mark.parametrize("low", [{30}, {30, 45}])
def test_single_low_evaluations_are_outliers_and_no_unrest(tmp_path: Path, size, low) -> None:
    rng, at = np.random.default_rng(size), np.arange(size)
    accuracy = rng.binomial(2000, 0.9 - 0.8 * np.exp(-at / (size / 6))) / 2000
    accuracy[list(low)] -= 0.3
    run = converted(tmp_path, {"val_acc": accuracy}, at)
    assert run.verdict == "outlier"
    assert set(run.events()["onset"]) == low


@pytest.mark.parametrize("period", [4, 6, 8])
def test_low_evaluations_near_to_each_other_are_no_single_ones(tmp_path: Path, period) -> None:
    at = np.arange(SIZE)
    noise = 0.005 * np.random.default_rng(0).normal(size=SIZE)
    accuracy = 0.8 - 0.7 * np.exp(-at / 20) + noise - 0.3 * ((at % period == 0) & (at > 100))
    run = converted(tmp_path, {"val_acc": np.clip(accuracy, 0, 1)})
    assert run.verdict == "unstable"


def test_healthy_series_have_no_unrest(tmp_path: Path) -> None:
    noise = 0.02 * np.random.default_rng(6_000_000).normal(size=SIZE)
    run = converted(tmp_path, {"val_acc": 0.7 + noise, "loss": falling_loss()})
    assert run.events("unrest").empty
    assert run.verdict == "stable"


@pytest.mark.parametrize(("name", "lane"), [("val_acc", "accuracy"), ("loss", "loss")])
def test_the_report_tells_unrest_in_its_answers_its_card_and_its_time_line(
    tmp_path: Path, name: str, lane: str
) -> None:
    converted(tmp_path, {name: alternating() if name == "val_acc" else swinging()})
    runs = diagnose(load(tmp_path))
    row = run_table(runs).iloc[0]
    assert (row["verdict"], row["unrest"]) == ("unstable", 1)
    unrest = [one for one in all_incidents(runs) if one.kind == "unrest"]
    assert [one.loss for one in unrest] == [None if name == "val_acc" else name]
    report = make_report(runs)
    (card,) = report.cards
    marks = [(kept, mark.kind) for kept, found in card.timeline.lanes for mark in found]
    assert (lane, "unrest") in marks
    assert any("Unrest from step" in one.headline for one in card.events)
    if name == "val_acc":  # a loss has spikes as well, which come first
        assert "Unrest from step" in report.answers[0].text
    assert any("Unrest is a stretch" in note for note in report.notes)


def test_unrest_that_another_event_covers_is_not_told() -> None:
    unrest = pd.DataFrame({"onset": [0, 100], "end": [50, 200]})
    dips = pd.DataFrame({"onset": [10, 190], "end": [50, 300]})
    assert not_covered(unrest, [dips])["onset"].tolist() == [100]
    forever = pd.DataFrame({"onset": [150], "end": [np.inf]})
    assert not_covered(unrest, [dips, forever]).empty
    assert not_covered(unrest, []).equals(unrest)
