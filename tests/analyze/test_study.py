"""Levels, claims and the figure of a study, against runs whose levels are known."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.scores import score
from stabkit.analyze.study import (
    arms_in_order,
    dip_more,
    higher,
    levels,
    more_runs,
    published,
    shares_table,
    study_table,
)
from stabkit.rundir import RunDir, State, Status
from stabkit.store.writer import Writer
from stabkit.sweep.grid import load_sweep
from tests.analyze.conftest import diagnosed, plant_run

FACTORS = ["model.freeze_patch_embed"]
UNFINISHED: dict[str, State] = {"false 0": "failed", "true 0": "running"}
FROZEN, LEARNED = {FACTORS[0]: True}, {FACTORS[0]: False}


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    for seed in range(3):
        for freeze in ("false", "true"):
            plant_run(
                tmp_path / f"{freeze} {seed}",
                f"model.freeze_patch_embed={freeze}",
                dip=0.08 if freeze == "false" else 0.0,
                seed=seed,
            )
    return tmp_path


@pytest.mark.lengthy
def test_level_is_the_median_of_the_last_fifth(arms: Path) -> None:
    runs = diagnosed(arms)
    table = levels(runs, FACTORS)
    assert len(table) == 6
    for run in runs:
        values = run.evals("knn_heldout")["value"].to_numpy()
        row = table[table["run"] == run.name].iloc[0]
        assert row["level"] == pytest.approx(100 * float(pd.Series(values[-20:]).median()))
        # a rising curve ends at its best
        assert row["sag"] == pytest.approx(0, abs=0.5)
    assert table[table[FACTORS[0]]]["dips"].sum() == 0
    assert table[~table[FACTORS[0]]]["dips"].sum() == 3
    assert not any("bursts" in vars(run) for run in runs), "the gradients of a run say nothing here"
    assert table.set_index("run")["exposure"].to_dict() == {
        run.name: score(run)["exposure"] for run in runs
    }


def test_unfinished_runs_are_left_out_and_counted(arms: Path) -> None:
    for name, state in UNFINISHED.items():
        RunDir(arms / name).write_status(Status(state, 100, 500))
    table = levels(diagnosed(arms), FACTORS)
    assert sorted(table["run"]) == ["false 1", "false 2", "true 1", "true 2"]
    text = study_table(table, pd.Series(dtype=float))
    assert "Left out, not finished: 2 runs." in text
    assert re.search(r"^frozen patch projection .* 2 +0 +0$", text, re.M)


def test_a_study_of_which_one_arm_is_unfinished_is_undecided(arms: Path) -> None:
    for seed in range(3):
        RunDir(arms / f"true {seed}").write_status(Status("running", 100, 500))
    table = levels(diagnosed(arms), FACTORS)
    for claim in (
        higher("frozen ends higher", table, FROZEN, LEARNED),
        dip_more("learned dips more", table, LEARNED, FROZEN),
    ):
        assert claim.verdict == "undecided"


def test_a_sag_without_a_dip_is_measured(plant_sagging: Path) -> None:
    (row,) = levels(diagnosed(plant_sagging), []).to_dict("records")
    assert row["sag"] == pytest.approx(20, abs=1)


@pytest.fixture
def plant_sagging(tmp_path: Path) -> Path:
    folder = plant_run(tmp_path / "run")
    for part in (folder / "evals").glob("*"):
        part.unlink()
    writer = Writer(folder, "planted")
    for step in range(0, 501, 5):
        correct = np.arange(1000) < 500 - max(0, step - 250)
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()
    return folder


@pytest.mark.lengthy
def test_claims_pair_runs_of_one_seed(arms: Path) -> None:
    table = levels(diagnosed(arms), FACTORS)
    table.loc[table[FACTORS[0]], "level"] = [61.0, 52.0, 73.0]
    table.loc[~table[FACTORS[0]], "level"] = [60.0, 50.0, 70.0]
    claim = higher("frozen ends higher", table, FROZEN, LEARNED)
    assert (claim.n, claim.effect) == (3, pytest.approx(2.0))
    assert claim.p_value == pytest.approx(stats.ttest_1samp([1, 2, 3], 0).pvalue)
    dips = dip_more("learned dips more often", table, LEARNED, FROZEN)
    assert "3 to 0 events in 3 and 3 runs" in str(dips)
    # three dips to none decide nothing
    assert dips.verdict == "undecided"


@pytest.mark.lengthy
def test_a_seed_without_its_pair_is_left_out(arms: Path) -> None:
    table = levels(diagnosed(arms), FACTORS)
    alone = table[~((table["seed"] == 1) & table[FACTORS[0]])]
    claim = higher("claim", alone, FROZEN, LEARNED)
    assert claim.n == 2
    assert "Paired over seed; 1 run without a partner left out" in claim.note
    apart = table.assign(seed=table["seed"] + 10 * table[FACTORS[0]])
    claim = higher("claim", apart, FROZEN, LEARNED)
    assert "compared unpaired" in claim.note
    assert "unpaired: 3 and 3 runs" in claim.note


@pytest.mark.lengthy
def test_runs_of_several_models_are_no_more_pairs_than_seeds(arms: Path) -> None:
    table = levels(diagnosed(arms), FACTORS)
    twice = pd.concat([table, table.assign(level=table["level"] + 4)])
    once = higher("claim", table, FROZEN, LEARNED)
    again = higher("claim", twice, FROZEN, LEARNED)
    assert (again.n, again.effect) == (3, pytest.approx(once.effect))


@pytest.mark.lengthy
def test_table_and_figure_hold_every_run_and_every_published_value(arms: Path) -> None:
    table = levels(diagnosed(arms), FACTORS)
    sweep = load_sweep(Path("sweeps/frameworks.yaml"), "imagenet")
    factors = ["method.name", *FACTORS]
    paper = published(sweep.runs, factors, "linear probe")
    assert paper["method moco, frozen patch projection"] == 73.4
    assert len(paper) == 8
    text = study_table(table, paper)
    assert all(f"{value:.1f}" in text for value in paper)
    assert "linear probe" in text
    figure = draw_levels(table, paper)
    here, there = figure.axes
    drawn = sorted(
        float(line.get_xdata()[0]) for line in here.lines if line.get_marker() not in ("None", "")
    )
    assert drawn == pytest.approx(sorted(table["level"]))
    assert list(there.lines[0].get_xdata()) == list(paper)
    assert [t.get_text() for t in there.get_yticklabels()] == list(paper.index)


def test_arms_that_a_paper_has_stand_in_its_order_in_one_row_with_it() -> None:
    arms = pd.DataFrame({"arm": ["b", "other", "a"], "level": [50.0, 60.0, 40.0]})
    table = arms.assign(dips=0, collapsed=False)
    paper = pd.Series({"a": 70.0, "b": 71.0}, name="probe")
    assert [line[:5].strip() for line in study_table(table, paper).splitlines()[1:4]] == [
        "a", "b", "other",
    ]  # fmt: skip
    here, there = draw_levels(table, paper).axes
    assert [t.get_text() for t in here.get_yticklabels()] == ["a", "b", "other"]
    assert list(there.lines[0].get_ydata()) == [0, 1]
    assert there.get_ylim() == here.get_ylim()
    assert not any(label.get_visible() for label in there.get_yticklabels())


def test_runs_with_events_are_counted_once_and_by_arm() -> None:
    """Fisher's exact test is the same question: 5 of 5 runs against 0 of 4."""
    names = [f"run {number}" for number in range(9)]
    arms = [False] * 5 + [True] * 4
    table = pd.DataFrame({"run": names, FACTORS[0]: arms, "arm": np.where(arms, "ice", "free")})
    events = pd.DataFrame({"run": [*names[:5], *names[:5], "a run that is not finished"]})
    claim = more_runs("learned runs dip more", table, events, LEARNED, FROZEN)
    fisher = stats.fisher_exact([[5, 0], [0, 4]]).pvalue
    assert (claim.verdict, claim.n) == ("holds", 9)
    assert claim.p_value == pytest.approx(fisher)
    assert "5 to 0 events in 5 and 4 runs" in claim.note
    assert more_runs("", table, events, FROZEN, LEARNED).verdict == "fails"
    text = shares_table(table, {"a dip": events, "none": events[:0]})
    low = 100 * stats.beta.ppf(0.025, 5, 1)  # Clopper and Pearson
    assert re.search(rf"^a dip +5 of 5 \({low:.0f} to 100 %\) +0 of 4 \(0 to 60 %\)$", text, re.M)
    assert re.search(r"^none +0 of 5 \(0 to 52 %\) +0 of 4 \(0 to 60 %\)$", text, re.M)


def test_arms_are_in_the_order_of_the_paper_or_of_their_numbers() -> None:
    arms = ["patch 16", "patch 4", "patch 8", "frozen, lr 0.04", "frozen, lr 0.004", "none"]
    table = pd.DataFrame({"arm": arms})
    assert arms_in_order(table, pd.Series({"patch 8": 1.0}, dtype=float)) == [
        "patch 8", "patch 4", "patch 16", "frozen, lr 0.004", "frozen, lr 0.04", "none"
    ]  # fmt: skip


def test_runs_of_one_seed_decide_nothing_however_many_settings_they_have() -> None:
    rates = [0.001, 0.002, 0.004, 0.008]
    rows = [
        {"seed": seed, "optim.lr": rate, "frozen": frozen, "level": 50 + 5 * frozen + i / 10}
        for seed in (0, 1)
        for i, rate in enumerate(rates)
        for frozen in (False, True)
    ]
    table = pd.DataFrame(rows).assign(level=lambda rows: rows["level"] + rows.index % 3 / 10)
    arms = {"frozen": True}, {"frozen": False}
    found = higher("text", table, *arms, pairs=["seed", "optim.lr"])
    assert (found.verdict, found.note) == ("holds", "too few runs for an interval")
    alone = higher("text", table[table["seed"] == 0], *arms, pairs=["seed", "optim.lr"])
    assert alone.p_value < 0.05
    assert (alone.verdict, alone.n) == ("undecided", 4)
    assert alone.note.endswith("of one seed, so undecided")
