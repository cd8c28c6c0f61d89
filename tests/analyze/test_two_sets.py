"""`stabkit analyze A B`: what is matched, what is said, what is refused."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from stabkit.cli import main
from stabkit.rundir import RunDir, Status
from stabkit.store.writer import Writer
from tests.analyze.conftest import STEPS, blow_up, evaluate_again, plant_run

FREEZE = "model.freeze_patch_embed"


def plant(folder: Path, *settings: str, seeds: range = range(3), dip: float = 0.0) -> Path:
    for lr in (1e-3, 2e-2):
        for seed in seeds:
            plant_run(folder / f"{lr} {seed}", f"optim.lr={lr}", *settings, dip=dip, seed=seed)
    return folder


def spiked(folder: Path) -> Path:
    """Give every run a loss that spikes; the accuracy stays as it is."""
    for run in folder.iterdir():
        loss = 1 + 0.01 * np.random.default_rng(0).normal(size=STEPS)
        loss[300:310] = 9
        writer = Writer(run, "planted")
        writer.add_scalars(np.arange(STEPS), "train/loss", loss)
        writer.flush()
    return folder


def analyze(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["analyze", *map(str, words)]) == 0
    return capsys.readouterr().out


def unwrapped(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.lengthy
def test_two_arms_are_paired_by_seed_and_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = plant(tmp_path / "learned", f"{FREEZE}=false", dip=0.08)
    frozen = plant(tmp_path / "frozen", f"{FREEZE}=true")
    text = analyze(capsys, learned, frozen)
    first = text.splitlines()[0]
    assert re.search(r"^frozen is unstable less often \(p = 0\.\d+\), dips less often", first), (
        first
    )
    assert f"{FREEZE}: False | True" in text
    assert "Paired over seed, optim.lr; 0 runs without a partner left out." in text
    assert "learned: 6 dips in 2,670 steps outside of dips, 330 steps in dips" in text
    assert "frozen: 0 dips in 3,000 steps outside of dips, 0 steps in dips" in text
    assert "learned: 6 of 6 runs unstable (6 unstable)" in text
    assert "frozen: 0 of 6 runs unstable (6 stable)" in text
    rows = [line for line in text.splitlines() if line.startswith("base lr")]
    assert [row.split("  ")[0] for row in rows] == ["base lr 0.001", "base lr 0.02"]
    assert all("3 | 3" in row and "3 | 0" in row for row in rows)


@pytest.mark.lengthy
def test_a_run_is_as_unstable_as_alone_and_dips_are_counted_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm, bad = plant(tmp_path / "calm"), spiked(plant(tmp_path / "bad", f"{FREEZE}=true"))
    assert "6 of 6 runs trained unstably" in analyze(capsys, bad)
    text = analyze(capsys, calm, bad)
    assert text.startswith("bad is unstable more often (p = ")
    assert "calm: 0 of 6 runs unstable (6 stable)" in text
    assert "bad: 6 of 6 runs unstable (6 unstable)" in text
    assert "bad: 0 dips in 3,000 steps outside of dips" in text
    rows = [line.split("  ")[-1] for line in text.splitlines() if line.startswith("base lr")]
    assert [row.strip() for row in rows] == ["0 | 3", "0 | 3"]


@pytest.mark.lengthy
def test_runs_without_an_accuracy_are_compared_by_their_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm, bad = plant(tmp_path / "calm"), spiked(plant(tmp_path / "bad", f"{FREEZE}=true"))
    for run in [*calm.iterdir(), *bad.iterdir()]:
        shutil.rmtree(run / "evals")
    text = analyze(capsys, calm, bad)
    assert text.startswith("bad is unstable more often (p = ")
    assert "Levels: bad against calm: no levels to compare." in text
    assert "Dips: no run has enough evaluations of an accuracy to find one." in text
    assert "nan" not in text
    assert re.search(r"^base lr 0.001 +3 \| 3 +- +- +- +- \| - +- \| - +0 \| 3$", text, re.M)


@pytest.mark.lengthy
def test_what_has_no_partner_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = plant(tmp_path / "one")
    two = plant(tmp_path / "two", f"{FREEZE}=true", seeds=range(1, 4))
    text = analyze(capsys, one, two)
    assert "4 runs without a partner left out" in text
    assert "one: 0 dips in 2,000 steps" in text, "four of its runs have a partner"


@pytest.mark.lengthy
def test_few_common_seeds_leave_no_run_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = plant(tmp_path / "one")
    text = analyze(capsys, one, plant(tmp_path / "two", f"{FREEZE}=true", seeds=range(2, 5)))
    said = "Only 2 of 6 and 2 of 6 runs have a partner of the same seed and optim.lr"
    assert f"{said}, too few for pairs: compared unpaired, with all runs." in unwrapped(text)
    assert "one: 0 dips in 3,000 steps" in text


@pytest.mark.lengthy
def test_three_runs_a_set_are_too_few_whatever_they_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, dip in (("a", 0.08), ("b", 0.0)):
        for seed in range(3):
            plant_run(
                tmp_path / name / str(seed), f"{FREEZE}={dip > 0}".lower(), dip=dip, seed=seed
            )
    text = analyze(capsys, tmp_path / "a", tmp_path / "b")
    assert "Equal rates of dips: p = 0.1; too few: such runs cannot show less than p = 0.1." in text
    assert text.startswith("Too few runs"), "a question that cannot be answered is not asked"


def test_the_time_in_dips_is_told_from_the_side_of_the_second_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        dip = 0.08 if seed else 0.0
        plant_run(tmp_path / "a" / str(seed), f"{FREEZE}=false", dip=dip, seed=seed)
        plant_run(tmp_path / "b" / str(seed), f"{FREEZE}=true", seed=seed)
    text = analyze(capsys, tmp_path / "a", tmp_path / "b")
    assert "b spends 8.2 % less of a run's steps in dips than a (p = 0.058; too few" in text
    text = analyze(capsys, tmp_path / "b", tmp_path / "a")
    assert "a spends 8.2 % more of a run's steps in dips than b" in text


@pytest.mark.lengthy
def test_without_a_common_seed_cells_are_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 0), ("b", 7)):
        for lr in (1e-3, 4e-3, 2e-2):
            plant_run(tmp_path / name / str(lr), f"optim.lr={lr}", seed=seed)
    text = unwrapped(analyze(capsys, tmp_path / "a", tmp_path / "b"))
    assert "paired over optim.lr, so that each cell counts as its mean" in text
    assert "3 pairs" in text


@pytest.mark.lengthy
def test_without_anything_in_common_it_is_unpaired_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = plant(tmp_path / "one")
    for seed in range(7, 10):
        plant_run(tmp_path / "two" / str(seed), "optim.lr=0.5", seed=seed)
    text = analyze(capsys, one, tmp_path / "two")
    assert "No run of one has a partner of the same seed and optim.lr" in unwrapped(text)
    assert "unpaired: 6 and 3 runs" in unwrapped(text)


@pytest.mark.lengthy
def test_runs_of_the_same_settings_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    text = analyze(capsys, plant(tmp_path / "runs"), plant(tmp_path / "x" / "runs"))
    assert text.startswith("Too few runs, or all alike: nothing can be said")
    assert "\nIn both sets, with all settings the same: 6 runs." in text
    assert str(tmp_path / "x" / "runs") in text, "of two folders of one name the path is said"


@pytest.mark.lengthy
def test_runs_without_settings_are_compared_unpaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        for seed in range(2):
            plant_run(tmp_path / name / str(seed), seed=seed)
            (tmp_path / name / str(seed) / "config.yaml").unlink()
    text = analyze(capsys, tmp_path / "a", tmp_path / "b")
    assert "unpaired: 2 and 2 runs" in unwrapped(text)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["b"], "analyze takes one folder of runs, or two to compare, got 3"),
        (["--plot", "knn"], "--plot knn takes one folder of runs, got 2"),
    ],
)
def test_more_folders_than_can_be_are_refused(
    tmp_path: Path, extra: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        plant_run(tmp_path / name / "run")
    extra = [str(tmp_path / word) if word == "b" else word for word in extra]
    assert main(["analyze", str(tmp_path / "a"), str(tmp_path / "b"), *extra]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_is_not_compared_with_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_run(tmp_path / "a" / "run")
    same = str(tmp_path / "a" / ".." / "a")
    assert main(["analyze", str(tmp_path / "a"), same]) == 2
    assert f"{same}: is both sets; name two folders to compare" in capsys.readouterr().err


def test_one_folder_that_is_missing_or_empty_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_run(tmp_path / "a" / "run")
    (tmp_path / "empty").mkdir()
    for name, says in (("none", "no such folder"), ("empty", "no run folder in it or below it")):
        assert main(["analyze", str(tmp_path / "a"), str(tmp_path / name)]) == 2
        assert f"{tmp_path / name}: {says}" in capsys.readouterr().err


@pytest.mark.lengthy
def test_runs_under_way_or_without_a_verdict_decide_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set whose runs have hardly begun is no better for having lost no step yet."""
    whole = plant(tmp_path / "whole", dip=0.08)
    begun = plant(tmp_path / "begun")
    for run in begun.iterdir():
        RunDir(run).write_status(Status("running", 30, STEPS))
    text = analyze(capsys, whole, begun)
    assert "6 runs left out: under way, broken off without a sign of instability" in unwrapped(text)
    assert "fewer" not in text.splitlines()[0]
    assert "nothing can be said" in text.splitlines()[0]


@pytest.mark.lengthy
def test_runs_that_blew_up_count_as_unstable_and_survivors_are_not_praised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop that raises on a loss of NaN ends as failed, and has no last accuracy."""
    small = plant(tmp_path / "small", f"{FREEZE}=false", seeds=range(6))
    large = plant(tmp_path / "large", f"{FREEZE}=true", seeds=range(6))
    for seed in range(6):
        for lr in (1e-3, 2e-2):
            evaluate_again(small / f"{lr} {seed}", 0.25, seed)
            evaluate_again(large / f"{lr} {seed}", 0.30, seed)
        blow_up(large / f"0.02 {seed}")
    text = unwrapped(analyze(capsys, small, large))
    assert "large: 6 of 12 runs unstable (6 diverged, 6 stable)" in text
    assert text.startswith("large is unstable more often")
    assert "ends" not in text.partition(" than small")[0]
    assert "have no level (6 of large). So this compares the others" in text
    assert "left out: under way" not in text


def test_sets_that_were_watched_for_different_steps_say_so_below_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, length in (("whole", 60), ("cut", 20)):
        for seed in range(4):
            folder = tmp_path / name / f"{seed}"
            (tmp_path / name).mkdir(exist_ok=True)
            rng = np.random.default_rng(seed)
            values = 0.7 - 0.6 * np.exp(-np.arange(60) / 15) + 0.003 * rng.standard_normal(60)
            rows = "".join(f"{i},{values[i]:.4f}\n" for i in range(length))
            Path(f"{folder}.csv").write_text(f"epoch,val_acc\n{rows}")
            assert main(["convert", f"{folder}.csv", "-o", str(folder)]) == 0
    capsys.readouterr()
    text = analyze(capsys, tmp_path / "whole", tmp_path / "cut")
    verdict, told = text.split("\n\n")[:2]
    assert "cut ends lower" in verdict
    assert told.startswith("They were watched for different numbers of steps, 59 and 19:")


def test_accuracies_of_different_names_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        plant_run(tmp_path / name / "run")
    before = analyze(capsys, tmp_path / "a", tmp_path / "b")
    for part in (tmp_path / "b" / "run" / "evals").iterdir():
        part.unlink()
    writer = Writer(tmp_path / "b" / "run", "planted")
    for step in range(0, STEPS + 1, 5):
        right = np.arange(1000) < 300 + step / 2
        writer.add_eval(step, "val_acc", float(right.mean()), 0.1, 0, 0.0, right)
    writer.flush()
    said = "different accuracies: knn_heldout in a, val_acc in b. They compare only if both"
    assert said in unwrapped(analyze(capsys, tmp_path / "a", tmp_path / "b"))
    assert "different accuracies" not in unwrapped(before)
    assert "on average" not in unwrapped(before), "one run is no average"
