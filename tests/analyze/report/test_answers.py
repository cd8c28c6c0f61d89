"""The three answers of the report."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stabkit.analyze.claims import Claim
from stabkit.analyze.report.answers import _prevented
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.report.headline import Verdict
from stabkit.analyze.report.incident import Incident
from stabkit.analyze.report.page import render
from stabkit.analyze.report.remedy_trials import Pair, Trial
from stabkit.analyze.report.signs import events_of
from stabkit.printing import counted
from tests.analyze.conftest import STEPS, diagnosed, plant_loop
from tests.analyze.test_any_run import converted, falling_loss, noise


@pytest.mark.usefixtures("undrawn")
def test_a_single_run_is_told_with_its_events_and_the_jump_of_the_rate(tmp_path: Path) -> None:
    """A fall in a window of evaluations begins before what brought it, and is not told then."""
    losses, accuracy = falling_loss(), 0.7 - 0.5 * np.exp(-np.arange(200) / 15)
    losses[120:125] *= 5
    accuracy = np.round(accuracy + 0.004 * np.log(noise(3, sigma=1.0)), 4)
    accuracy[121:127] -= 0.3
    rates = np.repeat([0.05, 5.0], [120, 80])
    converted(tmp_path, {"loss": losses, "lr": rates, "val_acc": accuracy})
    yes, where, _ = (answer.text for answer in make_report(diagnosed(tmp_path / "run")).answers)
    assert yes.startswith("Yes. Dip of 3")
    assert "Loss spike at step 1,200" in yes
    assert where.startswith("At step 1,200, with a ")
    assert "The learning rate jumped from 0.05 to 5 at step 1,200." in where
    assert "warm-up" not in where


@pytest.mark.usefixtures("undrawn")
def test_what_happens_between_two_evaluations_comes_before_the_fall_of_the_second(
    tmp_path: Path,
) -> None:
    """The loss is lost at step 152, and the accuracy is low from the evaluation at 160 on."""
    losses = np.repeat(falling_loss(), 10)[:600]
    losses[152:] = np.nan
    seen = 0.8 + 0.004 * np.log(noise(3, 60, sigma=1.0))
    seen[16:] -= 0.5
    accuracy = np.full(600, "", dtype=object)
    accuracy[::10] = seen
    run = converted(tmp_path, {"loss": losses, "val_acc": accuracy}, np.arange(600))
    report = make_report(diagnosed(tmp_path / "run"))
    _, where, _ = (answer.text for answer in report.answers)
    assert where.startswith("At step 152, with non-finite values in loss; accuracy fell between")
    assert "between steps 150 and 160." in where
    (lost,) = run.events("nonfinite").itertuples()
    assert (lost.onset, lost.end) == (152, 599)


def test_a_drift_in_which_another_event_begins_is_not_where_it_began() -> None:
    run: Any = SimpleNamespace(name="a")
    drift, spike, later = (
        Incident(run, "a", kind, onset, onset + 70, 1.0, "", ())
        for kind, onset in (("drift", 270), ("loss_spike", 300), ("drift", 400))
    )
    assert events_of([later, spike, drift], "a") == [spike, later]


@pytest.mark.parametrize(
    ("verdict", "with_it", "said"),
    [
        (
            "holds",
            (False, True),
            "Measured here: Lower it: +5.0 points in 2 pairs (unstable 2 of 2",
        ),
        (
            "holds",
            (True, True),
            "Not known. The most promising here, which may be chance: Lower it: +5.0",
        ),
        (
            "undecided",
            (False, False),
            "Not known. The most promising here, which may be chance: Lower it: +5.0",
        ),
    ],
)
def test_only_what_is_decided_to_prevent_it_is_called_measured(
    verdict: Any, with_it: tuple[bool, bool], said: str
) -> None:
    """Of several remedies without effect, one seems to help in most cases."""
    pairs = tuple(Pair("", "a", "b", 40.0, 45.0, True, unstable) for unstable in with_it)
    claim = Claim("", verdict, 5.0, 4.0, 6.0, "points", 2, 0.01)
    trial = Trial(pairs, claim, unfinished=0, corrected=0.01)
    advice: Any = SimpleNamespace(remedy=SimpleNamespace(name="Lower it"), trial=trial)
    answer = _prevented(Verdict("bad", "Unstable", ()), [advice])
    assert answer.startswith(said)


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_diverged_says_so_once(tmp_path: Path) -> None:
    losses = falling_loss()
    losses[150:] = np.nan
    converted(tmp_path, {"loss": losses})
    report = make_report(diagnosed(tmp_path / "run"))
    assert report.answers[0].text == "Yes. Non-finite values in loss from step 1,500."
    assert "run: loss is not finite from step 1,500." in report.verdict.lines[1:]


@pytest.mark.usefixtures("undrawn")
def test_a_loss_that_never_fell_asks_for_another_rate_and_no_warm_up(tmp_path: Path) -> None:
    flat = 2.3 * np.exp(0.002 * np.random.default_rng(0).normal(size=STEPS))
    plant_loop(tmp_path / "a", losses=flat, lr=0.3, warmup=50)
    report = make_report(diagnosed(tmp_path))
    unstable, where, prevented = (answer.text for answer in report.answers)
    assert unstable.startswith("Not unstable, but the loss never fell. No loss spike")
    assert where == "At the first step, with a loss that never fell."
    assert prevented == "Not measured here. The first to try: Lower the learning rate."
    assert [advice.remedy.name for advice in report.advice] == ["Lower the learning rate"]
    assert any("A loss is stuck if" in note for note in report.notes)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("bursts", "do"), [(1, "does"), (2, "do")])
def test_bursts_that_do_not_count_are_not_denied(tmp_path: Path, bursts: int, do: str) -> None:
    plant_loop(tmp_path / "a", ["a", "b", "c", "d"])
    runs = diagnosed(tmp_path)
    (run,) = runs
    assert make_report(runs).nothing == "No event was found."
    row = {"onset": 7, "end": 9, "ratio": 5.0, "layers": 1, "first": "a", "first_depth": 0}
    run.gradients.bursts = pd.DataFrame([row] * bursts)
    report = make_report(runs)
    said = f"{counted(bursts, 'gradient burst')} {do} not stand out from the noise, and {do} not"
    assert report.nothing == f"{said} count."
    assert report.answers[1].text == report.nothing
    assert report.nothing in render(report)
