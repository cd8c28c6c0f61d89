import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stabkit.analyze import collapse_events
from stabkit.analyze.cells import group_cells
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.sentences import COLLAPSE
from stabkit.analyze.summary import describe, run_table, summary
from stabkit.analyze.text import aligned
from stabkit.analyze.verdict import worst_first
from stabkit.rundir import RunDir
from stabkit.store.writer import Writer
from tests.analyze.conftest import (
    DIP,
    EVERY,
    SPIKE,
    STEPS,
    diagnosed,
    diagnosed_run,
    plant_loop,
    plant_run,
)


def test_planted_events_are_found_where_they_are(whole_grid: Path) -> None:
    run = diagnosed_run(whole_grid / "lr 0.02 false 0")
    (dip,) = run.accuracy.dips.to_dict("records")
    assert DIP[0] - 2 * EVERY <= dip["onset"] < DIP[0] + EVERY
    assert DIP[0] <= dip["trough"] < DIP[1]
    assert DIP[1] <= dip["recovery"] <= DIP[1] + 2 * EVERY
    # the curve rises under the dip, so its level is 0.03 lower at most at the trough
    assert 0.05 < dip["depth"] < 0.1
    found = run.gradients.spikes
    assert found[["layer", "onset"]].astype(str).to_numpy().tolist() == [
        ["patch_embed", str(SPIKE)],
        ["blocks.0", str(SPIKE + 2)],
    ]
    (burst,) = run.gradients.bursts.to_dict("records")
    assert (burst["onset"], burst["layers"], burst["first"]) == (SPIKE, 2, "patch_embed")


def test_the_table_has_a_verdict_for_every_run(grid_runs: Diagnoses) -> None:
    table = run_table(grid_runs)
    assert table["seed"].tolist() == [0, 1] * 4
    unstable = table[table["verdict"] == "unstable"]
    assert unstable["cell"].unique().tolist() == ["learned patch projection, base lr 0.02"]
    assert unstable["dips"].tolist() == [1, 1]
    assert set(table["verdict"]) == {"stable", "unstable"}


def test_the_words_say_what_the_table_says(grid_runs: Diagnoses) -> None:
    text = summary(grid_runs)
    assert "grid0: 8 runs (8 done)\n4 runs judged on held-out kNN accuracy, loss and the" in text
    assert "\nHeld-out kNN every 5 steps on 1,000 images, chance 10 %." in text
    assert "2 of 8 runs trained unstably. 2 of them finished without any error" in text
    assert "The deepest dip (learned patch projection, base lr 0.02" in text
    assert (
        "2 gradient bursts in 2 runs; the patch projection was among the first in 2 of 2 bursts\n"
        "of several layers.\n" in text
    )
    assert max(map(len, text.splitlines()[1:])) <= 110


def test_the_noise_rule_is_told_only_where_a_dip_could_be_found(tmp_path: Path) -> None:
    steps = np.arange(100)
    for evaluations in (7, 8):
        writer = Writer(tmp_path / str(evaluations), "planted")
        writer.add_scalars(steps, "loss", 2 - steps / 100)
        at = steps[: 5 * evaluations : 5]
        writer.add_accuracies(at, "val_acc", 0.5 + at / 200, math.nan, 0, 0, math.nan)
        writer.flush()
        text = summary(diagnosed(tmp_path / str(evaluations)))
        assert ("too few (a dip needs 8)" in text) == (evaluations == 7)
        assert ("the noise rule alone" in text) == (evaluations == 8)


def test_the_words_name_what_shows_a_collapse(tmp_path: Path) -> None:
    for seed in (0, 1):
        plant_run(tmp_path / f"{seed}", seed=seed)
    runs = diagnosed(tmp_path)
    table = run_table(runs)
    table["collapse"] = ["loss_relative, feature_std", ""]
    told = describe(runs, table).replace("\n", " ")
    assert "1 run collapsed, as shown by a loss at chance or zero and " in told
    assert "features that hardly differ." in told
    signs = {*collapse_events.COLLAPSE, collapse_events.ACCURACY}
    assert COLLAPSE.keys() == signs, "words for every sign"
    table["collapse"] = ["loss_relative, feature_std", "loss_relative"]
    both = "by a loss at chance or zero in 2 and features that hardly differ in 1."
    assert both in describe(runs, table).replace("\n", " ")


def test_healthy_runs_are_called_stable(tmp_path: Path) -> None:
    plant_run(tmp_path / "a")
    text = summary(diagnosed(tmp_path))
    assert "No dip, no drift, no loss spike, no collapse and no non-finite value in 1 run" in text
    assert "1 run (1 done)" in text


def test_swells_alone_are_named_and_are_not_denied(tmp_path: Path) -> None:
    plant_run(tmp_path / "a", spike=True)
    runs = diagnosed(tmp_path)
    (run,) = runs
    assert "  swells\n" not in summary(runs)
    run.gradients.bursts, run.gradients.swells = run.gradients.swells, run.gradients.bursts
    text = summary(runs)
    assert "  bursts  swells\n" in text
    assert "1 gradient swell in 1 run." in text
    assert "spiked" not in text


def test_a_dip_that_only_the_training_saw_is_told_and_changes_no_verdict(tmp_path: Path) -> None:
    """`stabkit status` counts it, so the analysis must not pass over it in silence."""
    healthy, dipped = plant_run(tmp_path / "a"), plant_run(tmp_path / "b", dip=0.08)
    for path, onset in ((healthy, 20), (dipped, DIP[0] - EVERY)):
        facts = {"cause": "dip", "metric": "knn_heldout", "trough": onset + 25, "depth": 0.112}
        for _ in range(2):  # a run that is resumed may see it again
            RunDir(path).append_entry("confirmed", 75, onset=onset, **facts)
        RunDir(path).append_entry("confirmed", 75, onset="early", **facts)
    run = diagnosed_run(healthy)
    assert run.accuracy.confirmed_then.to_numpy().tolist() == [[20, 45, 0.112]]
    assert run.verdict == "stable"
    assert diagnosed_run(dipped).accuracy.confirmed_then.empty, "the whole run shows it too"
    text = " ".join(summary(diagnosed(healthy)).split())
    assert "no clear sign of instability was found" in text
    assert "1 dip in 1 run stood out while it trained, and no longer among all evaluations" in text
    assert "11.2 points below its level at step 45, from step 20" in text


def test_a_run_with_a_nonfinite_event_is_called_diverged(tmp_path: Path) -> None:
    plant_run(tmp_path / "a")
    RunDir(tmp_path / "a").append_entry("nonfinite", 7, layers=["norm"])
    assert run_table(diagnosed(tmp_path))["verdict"].tolist() == ["diverged"]


@pytest.mark.parametrize(("since", "told"), [(150, True), (197, False)])
def test_layers_that_lose_their_gradient_in_mid_training_are_named(
    tmp_path: Path, since: int, told: bool
) -> None:
    layers, rng = ["a", "b", "c", "d"], np.random.default_rng(0)
    grads = np.exp(0.1 * rng.normal(size=(200, 4))).astype(np.float32)
    missing = np.zeros_like(grads, dtype=bool)
    missing[since:, :2] = True
    missing[60:65, 2] = True  # a pause
    missing[np.arange(200) % 30 != 0, 3] = True  # measured seldom, the last time at step 180
    writer = Writer(tmp_path / "run", "loop")
    writer.add_layers(np.arange(200), layers, {"grad_norm": grads}, {"grad_norm": missing})
    writer.add_scalars(np.arange(200), "nonfinite_layers", np.zeros(200))
    writer.flush()
    words = summary(diagnosed(tmp_path))
    assert (f"No gradient from step {since} to the end (run) in\na and b:" in words) == told
    assert diagnosed_run(tmp_path / "run").verdict == "stable"


def test_a_run_without_evaluations_is_told_so(tmp_path: Path) -> None:
    plant_run(tmp_path / "a")
    for part in (tmp_path / "a" / "evals").iterdir():
        part.unlink()
    runs = diagnosed(tmp_path)
    assert run_table(runs)["verdict"].tolist() == ["stable"]
    text = summary(runs)
    assert "Judged on loss and the gradient norms of 4 layers; no held-out accuracy." in text
    assert "kNN" not in text


def test_cells_group_seeds_and_sort_numbers_as_numbers(tmp_path: Path) -> None:
    for lr in ("1e-2", "9e-3", "0.1"):
        for seed in (1, 0):
            plant_run(tmp_path / f"{lr}-{seed}", f"optim.lr={lr}", seed=seed)
    cells = group_cells(diagnosed(tmp_path))
    assert [cell.settings["optim.lr"] for cell in cells] == [0.009, 0.01, 0.1]
    assert [[run.settings["seed"] for run in cell.runs] for cell in cells] == [[0, 1]] * 3


def test_columns_line_up() -> None:
    assert aligned([["a", "1"], ["bbb", "22"]]) == "a     1\nbbb  22"


@pytest.mark.lengthy
@pytest.mark.parametrize("command", [["analyze"], ["analyze", "--plot", "knn"]])
def test_the_command_prints_what_the_library_says(
    grid: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from stabkit.cli import main

    assert main([command[0], str(grid), *command[1:]]) == 0
    printed = capsys.readouterr().out
    if "--plot" in command:
        assert printed.split() == [f"{grid}/figures/knn.{end}" for end in ("png", "pdf", "csv")]
    else:
        said, _, following = printed.strip().rpartition("\n")
        assert said.strip() == summary(diagnosed(grid)).strip()
        assert following == f"Next: stabkit report {grid}"


@pytest.mark.lengthy
def test_only_the_worst_of_many_runs_are_listed(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stabkit.analyze import summary as module
    from stabkit.cli import main

    RunDir(grid / "lr 0.001 true 1").append_entry("nonfinite", 7, layers=["norm"])
    monkeypatch.setattr(module, "LISTED", 3)
    assert main(["analyze", str(grid), "--csv", str(grid / "all.csv")]) == 0
    text = capsys.readouterr().out
    assert "1 diverged, 2 unstable, 5 stable. The 3 that fared worst:" in text
    listed = [line for line in text.splitlines() if " patch projection, base" in line][:3]
    for line, verdict in zip(listed, ["diverged", "unstable", "unstable"], strict=True):
        assert f" {verdict} " in line
    assert "... and 5 runs more: `stabkit analyze RUNS --csv FILE` writes all." in text
    table = run_table(diagnosed(grid))
    assert pd.read_csv(grid / "all.csv")["run"].tolist() == table["run"].tolist()


def test_the_deepest_dip_is_of_its_run_where_names_are_the_same(tmp_path: Path) -> None:
    plant_run(tmp_path / "a" / "run", dip=0.05, seed=0)
    plant_run(tmp_path / "b" / "run", dip=0.12, seed=1)
    text = summary(diagnosed(tmp_path))
    assert "seed 1): 1" in text.replace("\n", " "), text


def test_a_csv_and_a_figure_are_two_requests(
    grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stabkit.cli import main

    assert main(["analyze", str(grid), "--plot", "knn", "--csv", "x.csv"]) == 2
    assert "--csv is the summary's table" in capsys.readouterr().err


def test_one_unstable_run_and_one_that_waits(tmp_path: Path) -> None:
    plant_run(tmp_path / "a", dip=0.2)
    plant_run(tmp_path / "b", "seed=1", seed=1)
    plant_run(tmp_path / "c", "seed=2", seed=2)
    shutil.rmtree(tmp_path / "c" / "evals")
    text = summary(diagnosed(tmp_path))
    assert text.startswith("1 of 3 runs trained unstably. It finished without any error")
    (waits,) = [line for line in text.splitlines() if line.split()[1:2] == ["2"]]
    assert waits.split()[3:5] == ["-", "-"], "it has no accuracy yet"


def test_of_equal_verdicts_the_lowest_accuracy_fared_worst() -> None:
    table = pd.DataFrame({"verdict": ["stable", "unstable", "stable"], "level": [0.6, 0.7, 0.4]})
    table = table.assign(deepest=0.0, lost_steps=0)
    assert worst_first(table).index.tolist() == [1, 2, 0]


def test_how_accuracy_was_measured_is_told_of_the_runs_that_share_it(tmp_path: Path) -> None:
    steps = np.arange(100)
    for name, every, n in (("a", 5, 100), ("b", 5, 100), ("c", 10, 50), ("d", 0, 0)):
        writer = Writer(tmp_path / name, "loop")
        writer.add_scalars(steps, "loss", 2 - steps / 100)
        if every:
            at = steps[::every]
            writer.add_accuracies(at, "val_acc", 0.5 + at / 200, 0.1, n, 0, math.nan)
        writer.flush()
    text = summary(diagnosed(tmp_path))
    assert "\n2 runs: val_acc every 5 steps on 100 samples, chance 10 %.\n" in text
    assert "\n1 run: val_acc every 10 steps on 50 samples, chance 10 %.\n" in text


def test_several_doubtful_runs_are_counted_in_the_first_line(tmp_path: Path) -> None:
    flat = 2.3 * np.exp(0.002 * np.random.default_rng(0).normal(size=STEPS))
    plant_loop(tmp_path / "flat", losses=flat)
    plant_loop(tmp_path / "burst", ["a", "b", "c", "d"], burst="b")
    plant_loop(tmp_path / "calm")
    first = summary(diagnosed(tmp_path)).splitlines()[0]
    bursting = "1 run with gradient bursts, swells or growth"
    assert first == f"None unstable, but {bursting} and 1 run whose loss never fell."


def test_the_table_names_the_run_of_each_cell_where_the_names_fit(tmp_path: Path) -> None:
    for lr in ("0.01", "0.02"):
        plant_run(tmp_path / f"my {lr}", f"optim.lr={lr}")
    lines = summary(diagnosed(tmp_path)).splitlines()
    (head,) = [line for line in lines if "verdict" in line]
    assert head.split()[:3] == ["run", "cell", "seed"]
    assert "deepest" not in head, "no run has a dip"
    assert any(line.startswith("my 0.01  base lr 0.01 ") for line in lines)
    (tmp_path / "my 0.02").rename(tmp_path / ("long " * 20))
    lines = summary(diagnosed(tmp_path)).splitlines()
    assert max(len(line) for line in lines if "base lr" in line) <= 100
    plant_run(tmp_path / "more", "optim.lr=0.01", seed=1)
    assert "run  " not in summary(diagnosed(tmp_path)), "cells of several runs have no name"


@pytest.mark.parametrize(("last", "told"), [(0.0, False), (0.02, True)])
def test_a_last_accuracy_that_is_not_the_final_one_is_explained(
    tmp_path: Path, last: float, told: bool
) -> None:
    values = np.full(50, 0.5)
    values[-1] += last
    writer = Writer(tmp_path / "a", "loop")
    writer.add_accuracies(np.arange(50), "val_acc", values, 0.1, 1000, 0, math.nan)
    writer.flush()
    text = summary(diagnosed(tmp_path))
    line = "\nfinal: the median of the last fifth of the evaluations; the last one differs by up to"
    assert (f"{line} 2.0 points.\n" in text) == told
    assert (line in text) == told
