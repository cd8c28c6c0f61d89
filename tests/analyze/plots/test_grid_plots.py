"""Figures of a whole sweep are compared by their data, against the runs that they show."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots import PLOTS, draw
from stabkit.analyze.plots.accuracy_table import (
    accuracy_table,
    accuracy_table_figure,
    write_texts,
)
from stabkit.analyze.plots.freeze_patch import freeze_patch_figure, freeze_patch_table
from stabkit.analyze.plots.lr_sensitivity import lr_sensitivity_figure, lr_sensitivity_table
from stabkit.analyze.plots.optimizer import optimizer_figure, optimizer_table
from stabkit.analyze.plots.stability_map import stability_map_figure, stability_map_table
from stabkit.analyze.scores import run_scores
from stabkit.analyze.sensitivity import points_lost
from stabkit.rundir import LeftOutWarning, RunDir, Status
from stabkit.store.writer import Writer
from tests.analyze.conftest import diagnosed, plant_run

MINE = ("accuracy-table", "freeze-patch", "lr-sensitivity", "optimizer", "stability-map")


def lower(folder: Path, share: float) -> None:
    """Make a planted run end lower, by other evaluations than those planted."""
    for part in (folder / "evals").glob("*"):
        part.unlink()
    writer = Writer(folder, "planted")
    for step in range(0, 501, 5):
        right = int(1000 * (0.3 + (share - 0.3) * step / 500))
        writer.add_eval(step, "knn_heldout", right / 1000, 0.1, 20, 0.07, np.arange(1000) < right)
    writer.flush()


@pytest.mark.lengthy
def test_freeze_patch_pairs_runs_of_one_seed_and_rate(grid: Path) -> None:
    lower(grid / "lr 0.02 false 0", 0.4)
    table = freeze_patch_table(diagnosed(grid))
    level = run_scores(diagnosed(grid)).set_index("run")["level"]
    pairs = table[table["row"] == "pair"]
    assert len(pairs) == 4
    for pair in pairs.to_dict("records"):
        lr = pair["group"].removeprefix("base lr ")
        assert pair["learned"] == level[f"lr {lr} false {pair['seed']:.0f}"]
        assert pair["frozen"] == level[f"lr {lr} true {pair['seed']:.0f}"]
    means = table[table["row"] == "mean"].set_index("group")["difference"]
    assert means["all pairs"] == pytest.approx((pairs["frozen"] - pairs["learned"]).mean())
    left, right = freeze_patch_figure(table).axes
    joined = [tuple(line.get_xdata()) for line in left.lines if len(line.get_xdata()) == 2]
    assert joined == [tuple(pair) for pair in pairs[["learned", "frozen"]].to_numpy()]
    assert [t.get_text() for t in left.get_yticklabels()][-1] == "all pairs"
    drawn = [float(line.get_xdata()[0]) for line in right.lines if line.get_marker() == "D"]
    assert drawn == pytest.approx(means.tolist())


@pytest.mark.lengthy
def test_freeze_patch_without_a_pair_is_refused(tmp_path: Path) -> None:
    for seed, freeze in enumerate(("false", "true")):
        plant_run(tmp_path / freeze, f"model.freeze_patch_embed={freeze}", seed=seed)
    with pytest.raises(ValueError, match="no frozen run shares its seed and settings"):
        freeze_patch_table(diagnosed(tmp_path))


@pytest.mark.lengthy
def test_lr_sensitivity_draws_every_run_and_says_what_the_range_costs(grid: Path) -> None:
    lower(grid / "lr 0.02 false 0", 0.4)
    runs = diagnosed(grid)
    table, level = lr_sensitivity_table(runs), run_scores(runs)
    figure = lr_sensitivity_figure(table)
    (ax,) = figure.axes
    dots = [line.get_xydata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    expected = level[["optim.lr", "level"]].to_numpy()
    np.testing.assert_array_equal(
        sorted(map(tuple, dots)), sorted(map(tuple, expected)), strict=False
    )
    hollow = sum(line.get_markerfacecolor() == "white" for line in ax.lines)
    assert hollow == (level["verdict"] == "unstable").sum() == 1, "the lowered run has no dip"
    learned = level[~level["model.freeze_patch_embed"]].groupby("optim.lr")["level"].mean()
    arms = table[table["row"] == "arm"].set_index("arm")["sensitivity"]
    costs = arms["learned patch projection"]
    assert costs == pytest.approx(points_lost(learned.index, learned))
    assert not figure.legends, "names stand at the ends of the lines"
    names = [text.get_text().replace("\n", " ") for text in ax.texts]
    assert f"learned patch projection costs {costs:.1f}" in names
    assert figure._supxlabel.get_text() == (
        "costs: points below the best rate, mean over the rates; hollow: an unstable run"
    )


@pytest.mark.lengthy
def test_rates_that_only_go_along_have_no_sensitivity(tmp_path: Path) -> None:
    for lr, name in ((1e-3, "none"), (2e-3, "batch"), (1e-3, "weight")):
        plant_run(tmp_path / name, f"optim.lr={lr}", f"model.patch_norm={name}")
    with pytest.raises(ValueError, match=r"vary optim\.lr only along with model\.patch_norm"):
        lr_sensitivity_table(diagnosed(tmp_path))


@pytest.mark.lengthy
def test_stability_map_ends_where_runs_turn_unstable(tmp_path: Path) -> None:
    bad = {
        (8, 0.004): 0,
        (8, 0.04): 1,
        (32, 0.004): 1,
        (32, 0.04): 1,
        (8, 0.001): 0,
        (32, 0.001): 0,
    }
    for (batch, lr), dip in bad.items():
        plant_run(
            tmp_path / f"{batch} {lr}", f"train.batch={batch}", f"optim.lr={lr}", dip=0.08 * dip
        )
    table = stability_map_table(diagnosed(tmp_path))
    assert {tuple(row) for row in table[["x", "y", "unstable"]].to_numpy()} == {
        (lr, batch, dip) for (batch, lr), dip in bad.items()
    }
    ends = table.drop_duplicates("y").set_index("y")[["stable", "first_unstable"]]
    assert ends.loc[8].tolist() == [0.004, 0.04]
    assert ends.loc[32].tolist() == [0.001, 0.004]
    figure = stability_map_figure(table)
    said = {text.get_text().partition(":")[0] for text in figure.legends[0].get_texts()}
    assert said == {"some runs of the cell are unstable", "border of stability"}
    borderless = stability_map_figure(
        table.assign(stable=np.nan, first_unstable=np.nan, unstable=0)
    )
    assert not borderless.legends[0].get_texts()
    ax, _ = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.001", "0.004", "0.04"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["8", "32"]
    edges = {(line.get_xdata()[0], np.mean(line.get_ydata())) for line in ax.lines}
    assert edges == {(1.5, 0.0), (0.5, 1.0)}
    texts = [text.get_text() for text in ax.texts]
    assert sum("1 of 1" in text for text in texts) == 3
    assert sum("0 of 1" in text for text in texts) == 3


@pytest.mark.lengthy
def test_a_map_of_settings_that_are_no_numbers(grid: Path, tmp_path: Path) -> None:
    for path in grid.glob("lr 0.02*"):
        path.rename(tmp_path / f"other {path.name}")
    folder = tmp_path / "named"
    for norm in ("none", "batch"):
        for freeze in ("false", "true"):
            plant_run(
                folder / f"{norm} {freeze}",
                f"model.patch_norm={norm}", f"model.freeze_patch_embed={freeze}",
            )  # fmt: skip
    table = stability_map_table(diagnosed(folder))
    assert table["stable"].isna().all(), "nothing that has no order has a frontier"
    names = set(table["x"]) | set(table["y"])
    assert names == {"none", "batch", "learned patch projection", "frozen patch projection"}
    stability_map_figure(table)


@pytest.mark.lengthy
def test_optimizers_have_a_panel_each_and_one_of_where_they_end(tmp_path: Path) -> None:
    for name in ("adamw", "lamb"):
        for lr in (1e-3, 1e-2):
            for seed in (0, 1):
                plant_run(
                    tmp_path / f"{name} {lr} {seed}",
                    f"optim.name={name}", f"optim.lr={lr}", seed=seed,
                )  # fmt: skip
    runs = diagnosed(tmp_path)
    table = optimizer_table(runs)
    figure = optimizer_figure(table)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["adamw", "lamb", "final level"]
    lamb = [run for run in runs if run.name.startswith("lamb 0.01")]
    mean = np.mean([100 * run.evals("knn_heldout")["value"] for run in lamb], axis=0)
    assert any(np.allclose(line.get_ydata(), mean) for line in figure.axes[1].lines)
    rows = table[(table["row"] == "run") & (table["optimizer"] == "lamb")]
    assert sorted(rows["level"]) == pytest.approx(
        sorted(run_scores(runs).query("`optim.name` == 'lamb'")["level"])
    )


def test_the_accuracy_table_has_a_column_an_evaluation_and_its_k(tmp_path: Path) -> None:
    values = {0: (0.5, 0.4), 1: (0.6, 0.3)}
    for seed, (few, many) in values.items():
        folder = plant_run(tmp_path / str(seed), seed=seed)
        writer = Writer(folder, "planted")
        for metric, k, value in (
            ("knn_full", 10, few), ("knn_full", 200, many), ("linear", 0, 0.7), ("finetune", 0, 0.8)
        ):  # fmt: skip
            right = np.arange(100) < 100 * value
            writer.add_eval(500, metric, float(right.mean()), 0.1, k, 0.07, right)
        writer.flush()
    table = accuracy_table(diagnosed(tmp_path)).set_index("metric")
    assert table.loc["knn_full, k = 10", "mean"] == pytest.approx(55)
    assert table.loc["knn_full, k = 10", "sd"] == pytest.approx(50**0.5)
    assert table.loc["knn_full, k = 200", "mean"] == pytest.approx(35)
    assert (table["n"] == 2).all()
    (ax,) = accuracy_table_figure(table.reset_index()).axes
    shown = [text.get_text().replace("\n", ", ") for text in ax.texts]
    heads = ["kNN held out, k = 20", "kNN full, k = 10", "kNN full, k = 200", "linear", "finetune"]
    assert [text for text in shown if text in heads] == heads
    assert "55.0 ± 7.1 (n = 2)" in shown


def test_the_accuracy_table_can_be_copied(tmp_path: Path) -> None:
    """Markdown, LaTeX and HTML have the same cells, and nothing in a name is markup."""
    name = "a|b_<c>&$"
    table = pd.DataFrame(
        [(name, "linear", 70.25, 1.5, 3, 2), (name, "odd|_metric", 50, np.nan, 1, 2),
         ("other", "linear", 60, np.nan, 1, 2)],
        columns=["cell", "metric", "mean", "sd", "n", "unfinished"],
    )  # fmt: skip
    paths = {path.suffix: path.read_text() for path in write_texts(table, tmp_path / "t")}
    rows = [line for line in paths[".md"].splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4] * 4
    assert r"a\|b\_\<c>&\$" in rows[2]
    assert "**70.2 ± 1.5 (n = 3)**" in rows[2]
    assert "**" not in rows[3]
    assert all("without 2 unfinished runs" in paths[kind] for kind in (".md", ".tex", ".html"))
    assert r"a|b\_<c>\&\$ & \textbf{70.2 $\pm$ 1.5 (n = 3)}" in paths[".tex"]
    found = ElementTree.fromstring(paths[".html"])
    assert found.findtext("tbody/tr/th") == name
    assert [cell.text for cell in found.findall("tbody/tr/td/strong")] == [
        "70.2 ± 1.5 (n = 3)", "50.0 (n = 1)"
    ]  # fmt: skip


@pytest.mark.lengthy
@pytest.mark.parametrize("name", MINE)
def test_a_run_that_has_not_ended_counts_in_no_mean(tmp_path: Path, name: str) -> None:
    names = ("adamw", "lars") if name == "optimizer" else ("adamw",)
    for optimizer in names:
        for lr in (1e-3, 2e-2):
            for freeze in ("false", "true"):
                plant_run(
                    tmp_path / f"{optimizer} {lr} {freeze}", f"optim.name={optimizer}",
                    f"optim.lr={lr}", f"model.freeze_patch_embed={freeze}",
                )  # fmt: skip
    expected = PLOTS[name].table(diagnosed(tmp_path))
    assert set(expected["unfinished"]) == {0}
    under_way = plant_run(tmp_path / "under way", "optim.lr=1e-3", "optim.name=adamw", seed=1)
    lower(under_way, 0.35)
    RunDir(under_way).write_status(Status("failed", 100, 500))
    table = PLOTS[name].table(diagnosed(tmp_path))
    assert table.drop(columns="unfinished").equals(expected.drop(columns="unfinished"))
    assert "without 1 unfinished run" in PLOTS[name].figure(table).get_supxlabel()


def test_a_setting_that_only_unfinished_runs_vary_is_told_so(tmp_path: Path) -> None:
    for lr in ("1e-3", "2e-2"):
        plant_run(tmp_path / lr, f"optim.lr={lr}")
    RunDir(tmp_path / "2e-2").write_status(Status("failed", 100, 500))
    said = r"these runs \(without 1 unfinished run\) do not vary optim.lr"
    with pytest.raises(ValueError, match=said):
        lr_sensitivity_table(diagnosed(tmp_path))


def test_means_are_so_far_where_no_run_has_ended(tmp_path: Path) -> None:
    for seed in range(2):
        RunDir(plant_run(tmp_path / f"{seed}", seed=seed)).write_status(Status("failed", 100, 500))
    assert accuracy_table(diagnosed(tmp_path))[["n", "unfinished"]].to_numpy().tolist() == [[2, 0]]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Diagnoses:
    """Twelve cells; a run of one was cut short after its first evaluation."""
    folder = tmp_path_factory.mktemp("many")
    for lr in (1e-3, 4e-3):
        for batch in (8, 16):
            for beta in (0.9, 0.99, 0.999):
                path = folder / f"{lr} {batch} {beta}"
                plant_run(path, f"optim.lr={lr}", f"train.batch={batch}", f"optim.beta2={beta}")
    short = folder / "0.001 8 0.9"
    for part in (short / "evals").glob("*"):
        part.unlink()
    writer = Writer(short, "planted")
    writer.add_eval(0, "knn_heldout", 0.25, 0.1, 20, 0.07, np.arange(100) < 25)
    writer.flush()
    return diagnosed(folder)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", [n for n in MINE if n not in ("freeze-patch", "optimizer")])
def test_many_cells_and_a_run_cut_short_are_drawn(
    many: Diagnoses, tmp_path: Path, name: str
) -> None:
    (csv,) = [path for path in draw(name, many, tmp_path) if path.suffix == ".csv"]
    assert len(pd.read_csv(csv)) >= 12


@pytest.mark.parametrize("name", MINE)
def test_runs_that_name_no_settings_are_drawn_or_refused(tmp_path: Path, name: str) -> None:
    for seed in (0, 1):
        (plant_run(tmp_path / str(seed), seed=seed) / "config.yaml").unlink()
    runs = diagnosed(tmp_path)
    if name == "accuracy-table":
        assert accuracy_table(runs)["n"].tolist() == [1, 1]
        return
    with pytest.raises(ValueError, match=r"vary|has no optim\.name"):
        PLOTS[name].table(runs)


def plant_settings(folder: Path, **runs: str) -> Diagnoses:
    """Plant runs of other loops, each with these lines as its settings; all have one curve."""
    for name, settings in runs.items():
        plant_run(folder / name)
        (folder / name / "config.yaml").write_text(settings.replace("; ", "\n") + "\n")
    return diagnosed(folder)


def test_a_map_leaves_out_the_runs_that_lack_one_of_its_settings(tmp_path: Path) -> None:
    runs = plant_settings(
        tmp_path,
        a="lr: 0.1; clip: 1.0",
        b="lr: 0.2; clip: 1.0",
        c="lr: 0.1; clip: null",
        d="lr: 0.2",
    )
    with pytest.warns(LeftOutWarning, match="left out of the figure, without a setting clip: d$"):
        table = stability_map_table(runs)
    cells = table[["x", "y"]].to_numpy().tolist()
    assert sorted(cells) == [[0.1, "1"], [0.1, "none"], [0.2, "1"]], "null is a value"
    stability_map_figure(table)


def test_a_map_of_settings_that_no_run_has_together_is_refused(tmp_path: Path) -> None:
    names = {"a": "lr: 0.1", "b": "lr: 0.2", "c": "bad: 1.0", "d": "bad: 2.0"}
    with pytest.raises(ValueError, match="no run has a learning rate and a setting bad"):
        stability_map_table(plant_settings(tmp_path, **names))


@pytest.mark.parametrize("rate", ["lr", "learning_rate", "hparams.lr"])
def test_the_rate_of_another_loop_is_a_rate(tmp_path: Path, rate: str) -> None:
    names = {"a": f"{rate}: 0.1", "b": f"{rate}: 0.2", "c": "bad: true"}
    runs = plant_settings(tmp_path, **names)
    with pytest.warns(LeftOutWarning, match="without a learning rate: c"):
        table = lr_sensitivity_table(runs)
    assert sorted(table.loc[table["row"] == "run", "lr"]) == [0.1, 0.2]
    assert set(table["arm"]) == {"all runs"}, "no kept run has another setting"
    lr_sensitivity_figure(table)


def test_optimizers_of_another_loop_are_compared(tmp_path: Path) -> None:
    names = {
        f"{name}-{lr}": f"optim.name: {name}; lr: {lr}"
        for name in ("adam", "sgd")
        for lr in (0.1, 0.2)
    }
    table = optimizer_table(plant_settings(tmp_path, **names))
    ends = table[table["row"] == "run"]
    assert sorted(ends["optimizer"] + " " + ends["lr"].astype(str)) == [
        "adam 0.1", "adam 0.2", "sgd 0.1", "sgd 0.2",
    ]  # fmt: skip
