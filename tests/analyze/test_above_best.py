"""A loss that ends above its best level is told, also where no verdict rests on it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stabkit.cli import main
from stabkit.detect.departure import ABOVE_BEST, RATIO
from stabkit.runs import Run
from tests.analyze.test_any_run import converted, told

SIZE = 1000
STEPS = 10 * np.arange(SIZE)
SINCE = np.arange(SIZE) / SIZE


def falling(name: str, climb: float = 0.0) -> dict[str, np.ndarray]:
    """Return a loss that falls to .8 and then climbs evenly, from the middle of the run on."""
    level = 0.8 + 1.7 * np.exp(-10 * SINCE) + climb * np.clip(2 * SINCE - 1, 0, 1)
    return {name: level * (1 + 0.03 * np.random.default_rng(6_000_000).normal(size=SIZE))}


def above_best(run: Run) -> pd.DataFrame:
    return run.diagnosis().loss.above_best


def test_a_training_loss_that_climbs_is_stable_and_told(tmp_path: Path, capsys) -> None:
    run = converted(tmp_path, falling("loss", climb=0.3), STEPS)
    assert run.verdict == "stable"
    (row,) = above_best(run).itertuples()
    assert ABOVE_BEST < row.ratio < RATIO
    assert row.ratio == pytest.approx((0.8 + 0.3 * 0.8) / 0.8, abs=0.05)
    assert row.onset == pytest.approx(5000, abs=1500)
    text = told(run, capsys)
    assert "no clear sign of instability" in text
    assert "1 loss ended above its best level, in 1 run" in text
    assert f"loss ended at {row.ratio:.1f} times its best level" in text
    assert "That counts from 1.4 times on." in text
    assert main(["report", str(run.path), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "1 loss ended above its best level, and does not count." in page
    assert "No event was found" not in page


def test_a_held_out_loss_is_told_however_high_it_ends(tmp_path: Path, capsys) -> None:
    run = converted(tmp_path, falling("val_loss", climb=2.0) | falling("train_loss"), STEPS)
    assert run.verdict == "stable"
    assert above_best(run)["series"].tolist() == ["val_loss"]
    assert above_best(run)["ratio"].item() > 2
    assert "overfitting raises held-out losses too" in told(run, capsys)


def test_a_loss_that_left_is_told_once(tmp_path: Path, capsys) -> None:
    run = converted(tmp_path, falling("loss", climb=2.0), STEPS)
    assert run.verdict == "diverged"
    assert above_best(run).empty
    assert "ended above" not in told(run, capsys)


@pytest.mark.parametrize("name", ["policy_loss", "loss_d"])
def test_losses_without_a_level_of_their_own_are_not_told(tmp_path: Path, capsys, name) -> None:
    run = converted(tmp_path, falling(name, climb=0.3), STEPS)
    assert above_best(run).empty
    assert "ended above" not in told(run, capsys)


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_loss_does_not_end_above_its_best_level(tmp_path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=SIZE)
    run = converted(
        tmp_path, {"loss": (0.8 + 1.7 * np.exp(-10 * SINCE)) * np.exp(0.1 * noise)}, STEPS
    )
    assert above_best(run).empty
