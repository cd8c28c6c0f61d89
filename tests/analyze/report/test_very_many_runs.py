"""A report of very many runs stays short: it shows the worst, and says what it leaves out."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots import (
    PLOTS,
    accuracy_table,
    freeze_patch,
    knn,
    lr_sensitivity,
    optimizer,
    stability_map,
)
from stabkit.analyze.plots.many import TooManyError, evenly
from stabkit.analyze.report import contents, figures, interactive, page, zooms
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.report.incidents import all_incidents
from stabkit.analyze.report.page import render
from stabkit.analyze.report.pictures import Picture
from stabkit.config import save_config
from stabkit.rundir import RunDir, Status
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer
from tests.analyze.conftest import LAYERS, diagnosed, plant_run
from tests.conftest import small_config

RATES, SEEDS = [0.001 * 2**i for i in range(10)], range(3)
STEPS, EVERY, SAMPLES = 120, 4, 300
RUNS = 2 * len(RATES) * len(SEEDS)
DIPPED = {"0.016 False 1": 0.3, "0.032 True 2": 0.2}  # how deep


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Diagnoses:
    """Ten rates, frozen and learned, three seeds; two runs dip."""
    folder = tmp_path_factory.mktemp("sixty")
    for rate in RATES:
        for freeze in (False, True):
            for seed in SEEDS:
                make_run(folder / f"{rate:g} {freeze} {seed}", rate, freeze, seed)
    return diagnosed(folder)


def make_run(folder: Path, rate: float, freeze: bool, seed: int) -> None:
    settings = [f"optim.lr={rate}", f"model.freeze_patch_embed={str(freeze).lower()}"]
    rng = np.random.default_rng([seed, round(1e4 * rate), freeze])
    rundir = RunDir(folder)
    folder.mkdir()
    rundir.config_file.write_text(save_config(small_config(f"seed={seed}", *settings)))
    rundir.write_status(Status("done", STEPS, STEPS))
    steps, writer = np.arange(STEPS), Writer(folder, "made")
    grads = np.exp(0.1 * rng.normal(size=(STEPS, len(LAYERS)))).astype(np.float32)
    missing = dict.fromkeys(SIGNALS, np.zeros(grads.shape, dtype=bool))
    writer.add_layers(steps, LAYERS, dict.fromkeys(SIGNALS, grads), missing)
    writer.add_scalars(steps, "loss", np.linspace(2, 1, STEPS))
    hard = rng.random(SAMPLES)
    for step in range(0, STEPS + 1, EVERY):
        level = 0.3 + 0.3 * step / STEPS - DIPPED.get(folder.name, 0.0) * (60 <= step < 76)
        correct = hard + 0.01 * rng.normal(size=SAMPLES) < level
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, limits in {
        contents: {"LISTED": 5, "VALUES": 2, "ZOOMS": 1},
        figures: {"MAX_CELLS": 3},
        page: {"LISTED": 5},
        knn: {"ONE_BY_ONE": 10, "WORST": 4, "PANELS": 2},
        accuracy_table: {"ROWS": 6},
        freeze_patch: {"ROWS": 6, "PAIRS": 12},
        lr_sensitivity: {"ROWS": 1},
        optimizer: {"PANELS": 2, "ROWS": 6},
        stability_map: {"ROWS": 6},
    }.items():
        for name, limit in limits.items():
            monkeypatch.setattr(module, name, limit)


def drawn(name: str, runs: Diagnoses) -> tuple[Figure, pd.DataFrame, str]:
    """Return a figure, the table that it is drawn from, and the note below it."""
    table = PLOTS[name].table(runs)
    figure = PLOTS[name].figure(table)
    return figure, table, figure.get_supxlabel()


@pytest.mark.lengthy
@pytest.mark.usefixtures("low_limits")
def test_the_page_is_bounded_and_says_what_it_leaves_out(
    sixty: Diagnoses, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: PLOTS[name] for name in ("grad-norms", "stability-map")}
    monkeypatch.setattr(figures, "PLOTS", some)
    for module in (figures, zooms):
        monkeypatch.setattr(module, "picture", lambda figure, alt: Picture("data:,", 1, 1, alt))
    report = make_report(sixty)
    assert len(report.runs.rows) == 5
    assert [row[-1] for row in report.runs.rows[:2]] == list(DIPPED), "the deepest dip first"
    assert "The 5 runs that fared worst" in report.runs.caption
    assert "55 more are not listed: stabkit analyze RUNS --csv FILE" in report.runs.caption
    assert report.factors is not None
    assert {row[0] for row in report.factors.rows} == {row[-1] for row in report.runs.rows}
    assert "of the 5 runs that fared worst" in report.factors.caption
    assert any("a map of 10 by 2 values" in text for text in report.undrawn)
    html = render(report)
    assert "Not drawn is stability-map" in html
    assert "the first 3 of 20 cells" in html
    (pairs,) = re.findall(r"compared: freeze.*?</details>", html, re.DOTALL)
    assert pairs.count("<li>") == 5
    assert "Not on this page: 25 more pairs." in pairs
    events = min(len(all_incidents(sixty)) - 1, 5)  # one has a picture
    shown = html[: html.index('id="try"')]
    heads = "events, five runs twice, and a head each"
    assert shown.count('<tr role="row">') == 1 + events + 6 + 6, heads


def test_a_setting_with_very_many_values_names_some(
    sixty: Diagnoses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "VALUES", 2)
    for i, run in enumerate(sixty):
        monkeypatch.setitem(run.settings, "runtime.threads", i)
    assert dict(contents._shared(sixty))["runtime.threads"] == "0, 1 and 58 more"


@pytest.mark.lengthy
@pytest.mark.usefixtures("low_limits")
def test_the_charts_show_the_worst_runs(sixty: Diagnoses) -> None:
    learned, frozen = (c for c in interactive.charts(sixty) if c.name == "knn")
    scales = [json.loads(chart.data)["layout"]["yaxis"]["range"] for chart in (learned, frozen)]
    assert scales[0] == scales[1], "lines of two panels can be compared"
    drawn = [json.loads(chart.data)["data"] for chart in (learned, frozen)]
    values = [y for lines in drawn for line in lines for y in line["y"]]
    assert scales[0][0] < min(values) < max(values) < scales[0][1]
    some = "the 4 of 30 runs that fared worst"
    assert learned.title == f"learned patch projection, {some}"
    assert frozen.title == f"frozen patch projection, {some}"
    assert learned.data.count('"name"') == frozen.data.count('"name"') == 4
    assert "base lr 0.016, seed 1" in learned.data + frozen.data


@pytest.mark.lengthy
@pytest.mark.usefixtures("low_limits")
def test_knn_draws_the_worst_over_the_median_and_the_middle_of_all(sixty: Diagnoses) -> None:
    figure, table, note = drawn("knn", sixty)
    assert table["run"].nunique() == RUNS, "the table holds all"
    assert len(figure.axes) == 2
    for ax, frozen in zip(figure.axes, ("learned", "frozen"), strict=True):
        panel = table[table["panel"] == f"{frozen} patch projection"]
        assert ax.get_title().endswith("the 4 worst of 30 runs")
        curves = [line for line in ax.lines if len(line.get_xdata()) > 2]
        assert len(curves) == 5
        median = panel.groupby("step")["value"].median()
        assert any(np.allclose(line.get_ydata(), 100 * median) for line in curves)
        dipped = next(name for name in DIPPED if name in set(panel["run"]))
        values = panel.loc[panel["run"] == dipped, "value"]
        assert any(
            np.allclose(line.get_ydata(), 100 * values)
            for line in curves
            if len(line.get_ydata()) == len(values)
        )
    assert note == "n = 3 seeds"


@pytest.mark.lengthy
def test_knn_of_very_many_panels_draws_those_with_the_deepest_dips(
    sixty: Diagnoses, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = knn.knn_table(sixty).assign(panel=lambda rows: rows["run"])
    monkeypatch.setattr(knn, "PANELS", 2)
    figure = knn.knn_figure(table)
    assert [ax.get_title() for ax in figure.axes] == list(DIPPED)
    assert figure.get_supxlabel() == "n = 1 seed; 2 of 60 panels: those with the worst runs"


@pytest.mark.usefixtures("low_limits")
def test_freeze_patch_draws_pairs_over_their_whole_range(sixty: Diagnoses) -> None:
    figure, table, note = drawn("freeze-patch", sixty)
    assert note == "the 6 of 10 groups with the largest differences"
    means = table[(table["row"] == "mean") & (table["group"] != "all pairs")]
    largest = means.loc[means["difference"].abs().nlargest(6).index, "group"]
    assert {text.get_text() for text in figure.axes[0].get_yticklabels()} == {
        "all pairs",
        *largest,
    }
    one = table.assign(group=table["group"].where(table["row"] == "mean", "one"))
    one = one[(one["row"] == "pair") | (one["group"] == means["group"].iloc[0])].replace(
        {"group": {means["group"].iloc[0]: "one"}}
    )
    shown, *notes = freeze_patch._some(one)
    pairs = shown[shown["row"] == "pair"]["difference"]
    every = one[one["row"] == "pair"]["difference"]
    assert notes == ["", "at most 12 pairs of a group, evenly spaced by their difference"]
    assert (len(pairs), pairs.min(), pairs.max()) == (12, every.min(), every.max())
    assert (shown["row"] == "mean").sum() == 1, "means and intervals are those of all pairs"


@pytest.mark.lengthy
@pytest.mark.usefixtures("low_limits")
def test_other_figures_draw_the_lowest_and_say_so(
    sixty: Diagnoses, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, table, note = drawn("accuracy-table", sixty)
    assert note == "the 6 of 20 cells with the lowest knn_heldout, k = 20"
    lowest = accuracy_table._lowest(table)[0]["mean"]
    assert sorted(lowest) == sorted(table["mean"])[:6]
    _, table, note = drawn("lr-sensitivity", sixty)
    assert "; the 1 of 2 arms that lose most" in note
    with pytest.raises(TooManyError, match="a map of 10 by 2 values; there is room for 6"):
        drawn("stability-map", sixty)
    for run in sixty:
        if run.settings["model.freeze_patch_embed"]:
            monkeypatch.setitem(run.settings, "optim.name", "lamb")
    figure, table, note = drawn("optimizer", sixty)
    seeds = "n = 3 seeds, shaded over their range"
    assert note == f"{seeds}; the 1 of 2 arms that end lowest; curves of 6 of 10 rates"
    levels = table[table["row"] == "run"].groupby("optimizer")["level"].mean()
    assert figure.axes[0].get_title().replace("\n", " ") == levels.idxmin()


def test_a_map_of_very_many_panels_draws_the_most_unstable(
    sixty: Diagnoses, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = stability_map.stability_map_table(sixty)
    table = table.assign(panel=[f"panel {i}" for i in range(len(table))])
    monkeypatch.setattr(stability_map, "PANELS", 2)
    figure = stability_map.stability_map_figure(table)
    unstable = table[table["unstable"] > 0]["panel"]
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == list(unstable)
    assert figure.get_supxlabel().endswith("2 of 20 panels: those with the most unstable runs")


def test_evenly_keeps_both_ends() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly("abc", 3) == ["a", "b", "c"]


@pytest.mark.usefixtures("undrawn")
def test_the_worst_runs_come_first_and_the_rest_is_folded(tmp_path: Path) -> None:
    for seed in range(12):
        plant_run(tmp_path / f"run {seed}", dip=0.08 + 0.01 * seed, seed=seed)
    report = make_report(diagnosed(tmp_path))
    deepest = [float(row[report.runs.head.index("deepest, points")]) for row in report.runs.rows]
    assert deepest == sorted(deepest, reverse=True)
    events, _, runs = render(report).partition('id="events"')[2].partition('id="runs"')
    runs = runs.partition('id="settings"')[0]
    shown, fold, folded = events.partition("<summary>7 more runs with events</summary>")
    assert fold
    assert (shown.count("<article"), folded.count("<article")) == (5, 7)
    shown, fold, folded = runs.partition("<summary>2 more runs</summary>")
    assert fold
    row = '<th scope="row"'
    assert (shown.count(row), folded.count(row)) == (10, 2)
