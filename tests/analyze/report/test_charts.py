"""The zoomable charts say what the pictures say that they stand for."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots import PLOTS
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.report.figures import Shown
from stabkit.analyze.report.interactive import ABOUT, Chart, charts
from stabkit.analyze.report.page import render
from tests.analyze.conftest import LAYERS, SPIKE, diagnosed, falling_loss, level, plant_loop


def contents(runs: Diagnoses, name: str) -> list[dict[str, Any]]:
    return [json.loads(chart.data) for chart in charts(runs) if chart.name == name]


MARKS = ("warm-up ends", "chance")


def shapes(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    every = [shape for content in contents for shape in content["layout"]["shapes"]]
    return [shape for shape in every if words(shape) not in MARKS]


def words(shape: dict[str, Any]) -> str:
    return str(shape.get("label", {}).get("text", ""))


@pytest.mark.usefixtures("undrawn")
def test_a_caption_says_what_the_chart_shows_and_not_what_its_picture_does(
    grid_runs: Diagnoses,
) -> None:
    """Only pictures have zoomed panels and bold spikes."""
    shown = [Shown(name, name, PLOTS[name].about, ()) for name in ("knn", "loss", "grad-norms")]
    report = replace(make_report(grid_runs), lead=shown[0], figures=tuple(shown))

    def captions(zoomable: Sequence[Chart]) -> list[str]:
        page = render(report, zoomable)
        return re.findall(r"<figcaption>(.*?)\. With its numbers", page, re.S)

    words = [f"{text[0].upper()}{text[1:]}" for text in ABOUT.values()]
    assert [" ".join(text.split()) for text in captions(charts(grid_runs))] == words
    assert not {text for text in words if "zoom" in text or "bold" in text}
    (*_, gradients) = captions(())
    assert gradients.endswith("the largest bursts zoomed")


@pytest.mark.lengthy
def test_a_chart_says_final_accuracies_depths_of_dips_and_bursts(grid_runs: Diagnoses) -> None:
    accuracy = contents(grid_runs, "knn")
    names = [line["name"] for content in accuracy for line in content["data"]]
    finals = [name.rpartition(" · ")[2] for name in names]
    assert sorted(finals) == sorted(f"{level(run):.1f}" for run in grid_runs)
    said = [shape["label"]["text"] for shape in shapes(accuracy)]
    depths = [100 * depth for run in grid_runs for depth in run.accuracy.dips["depth"]]
    assert sorted(said) == sorted(f"-{depth:.1f} pt" for depth in depths)
    (line,) = [shape for shape in shapes(contents(grid_runs, "grad-norms")) if "label" in shape]
    assert SPIKE <= line["x0"] == line["x1"] < SPIKE + 3
    assert f"from step {SPIKE}" in line["label"]["text"].replace("<br>", " ")


def test_a_chart_has_epochs_the_end_of_the_warmup_and_chance_as_the_pictures(
    grid_runs: Diagnoses,
) -> None:
    run = next(iter(grid_runs))
    warmup, batch = run.settings["optim.warmup_steps"], run.settings["train.batch"]
    for name in ("knn", "loss", "grad-norms"):
        for content in contents(grid_runs, name):
            layout = content["layout"]
            at = [shape["x0"] for shape in layout["shapes"] if words(shape) == "warm-up ends"]
            assert at == [warmup], name
            epoch = run.settings["data.num_train"] // batch
            assert f"an epoch has {epoch:,})" in layout["xaxis"]["title"]["text"]
    for content in contents(grid_runs, "knn"):
        (line,) = [shape for shape in content["layout"]["shapes"] if words(shape) == "chance"]
        assert line["y0"] == line["y1"] == 10
        low, high = content["layout"]["yaxis"]["range"]
        assert low < 10 < high


def test_every_event_has_a_band_of_its_own_behind_the_gradients(tmp_path: Path) -> None:
    losses = falling_loss()
    losses[200:210] += 5
    losses[350:360] += 5
    plant_loop(tmp_path / "a", LAYERS, losses=losses)
    bands = shapes(contents(diagnosed(tmp_path), "grad-norms"))
    assert [(band["x0"], band["x1"]) for band in bands] == [(200, 209), (350, 359)]
