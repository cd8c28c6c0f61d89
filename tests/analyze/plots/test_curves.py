"""Figures of runs that are not our own: losses, norms and accuracies by any name, or none."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.plots import PLOTS
from stabkit.analyze.plots.catalog import figure_of
from stabkit.analyze.plots.clock import warmup_end
from stabkit.analyze.plots.curves import (
    accuracy_axis,
    gradient_curves,
    loss_events,
    main_loss,
    spacing,
    two_lines,
)
from stabkit.analyze.plots.event_zoom import event_zoom_figure, event_zoom_rows, event_zoom_table
from stabkit.analyze.plots.grad_norms import grad_norms_figure, grad_norms_table
from stabkit.analyze.plots.knn import knn_axis, knn_figure, knn_panels, knn_table
from stabkit.analyze.plots.losses import draw_loss, loss_figure, loss_table
from stabkit.analyze.plots.signals import signals_table
from stabkit.store.reader import open_run
from stabkit.store.schema import METRIC
from stabkit.store.writer import Writer
from tests.analyze.conftest import STEPS, diagnosed, falling_loss, plant_loop

NORMS = np.exp(0.1 * np.random.default_rng(2).normal(size=STEPS))


def spiked(at: int = 200) -> np.ndarray:
    losses = falling_loss()
    losses[at : at + 10] *= 3
    return losses


def run_of(folder: Path) -> Diagnosis:
    return Diagnosis(open_run(folder))


def labels(figure: Figure) -> list[str]:
    return [ax.get_ylabel().replace("\n", " ") for ax in figure.axes]


def test_a_norm_of_the_whole_model_is_a_curve_over_its_median(tmp_path: Path) -> None:
    norms = NORMS.copy()
    norms[100:103] *= 50
    run = run_of(plant_loop(tmp_path / "a", losses=spiked(), grad_norm=norms))
    curves = gradient_curves(run)
    assert set(curves["layer"]) == {"grad_norm"}
    np.testing.assert_allclose(curves["relative"], norms / np.median(norms))
    table = grad_norms_table(diagnosed(tmp_path))
    peaks = table[(table["series"] == "grad_norm") & table["event"].astype(bool)]
    assert peaks["step"].between(100, 102).all()
    result = table[table["series"] == "loss"]
    assert result.loc[result["event"].astype(bool), "step"].tolist() == list(range(200, 210))
    figure = grad_norms_figure(table)
    ax = figure.axes[0]
    assert figure.get_supylabel() == "gradient norm / its median"
    (shade,) = ax.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (200, 209)


def test_an_event_shows_only_what_was_recorded_by_its_own_name(tmp_path: Path) -> None:
    plant_loop(tmp_path / "a", loss="train/loss", losses=spiked())
    table = event_zoom_table(diagnosed(tmp_path))
    assert table["event"].unique().tolist() == ["largest loss spike, a"]
    assert table.loc[table["spike"], ["series", "step"]].to_numpy().tolist() == [
        ["train/loss", 200]
    ]
    assert labels(event_zoom_figure(table)) == ["train/loss"]


def test_an_event_shows_the_layer_where_it_began(tmp_path: Path) -> None:
    run = run_of(plant_loop(tmp_path / "a", ["wte", "h.0", "h.1", "h.2", "ln_f"], burst="h.1"))
    rows = event_zoom_rows(run, 300, 306)
    assert set(rows["series"]) - {"loss"} == {"wte", "h.1", "h.2", "ln_f"}
    legend = event_zoom_figure(rows).legends[0]
    assert [text.get_text() for text in legend.get_texts()][:4] == ["wte", "h.1", "h.2", "ln_f"]
    elsewhere = event_zoom_rows(run, 100, 110)
    assert "h.1" not in set(elsewhere["series"])


def test_an_event_names_another_loss_than_the_main_one(tmp_path: Path) -> None:
    run = run_of(plant_loop(tmp_path / "a", val_loss=spiked(300)))
    rows = event_zoom_rows(run, 300, 309, "val_loss")
    assert set(rows["series"]) == {"val_loss"}
    assert rows.loc[rows["spike"], "step"].tolist() == [300]


def test_a_loss_that_left_for_good_has_no_band_to_the_end(tmp_path: Path) -> None:
    losses = falling_loss()
    losses[300:] *= 3
    run = run_of(plant_loop(tmp_path / "a", losses=losses))
    (left,), (spike,) = run.loss.departures.to_dict("records"), run.loss.spikes.to_dict("records")
    assert left["end"] == STEPS - 1
    (ax,) = event_zoom_figure(event_zoom_rows(run, left["onset"], left["end"])).axes
    assert not ax.patches
    (ax,) = event_zoom_figure(event_zoom_rows(run, spike["onset"], spike["end"])).axes
    assert len(ax.patches) == 1, "the spike with which it began has an end"


def test_the_surroundings_of_an_event_are_counted_in_values(tmp_path: Path) -> None:
    """A log with a value every 100 steps shows as many of them as one with a value a step."""
    writer = Writer(tmp_path / "a", "loop")
    writer.add_scalars(100 * np.arange(STEPS), "loss", spiked())
    writer.flush()
    rows = event_zoom_rows(run_of(tmp_path / "a"), 20_000, 20_900)
    assert (rows["step"].min(), rows["step"].max()) == (17_000, 23_900)
    assert spacing(rows["step"]) == 100
    assert spacing(rows["step"].head(1)) == 1


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({"loss": False, "val_loss": True}, "loss"),
        ({"train/loss": False, "val/loss": True}, "val/loss"),
        ({"train/loss": False, "val/loss": False}, "train/loss"),
        ({"loss_d": False, "loss_g": True}, "loss_g"),
        ({"cls_loss": False, "box_loss": False}, "box_loss"),
    ],
)
def test_the_main_loss_is_loss_or_the_one_with_an_event_or_that_of_training(
    tmp_path: Path, losses: dict[str, bool], chosen: str
) -> None:
    (name, bad), *others = losses.items()
    plant_loop(
        tmp_path / "a",
        loss=name,
        losses=spiked() if bad else falling_loss(),
        **{other: spiked() if spikes else falling_loss() for other, spikes in others},
    )
    assert main_loss(run_of(tmp_path / "a")) == chosen


def test_a_run_without_a_loss_has_none(tmp_path: Path) -> None:
    run = run_of(plant_loop(tmp_path / "a", loss="reward"))
    assert main_loss(run) is None
    assert loss_table(diagnosed(tmp_path)).empty


def test_the_loss_figure_marks_spikes_departures_and_what_is_not_finite(tmp_path: Path) -> None:
    left, bad = falling_loss(), falling_loss()
    left[350:] += 4
    bad[400:] = np.nan
    plant_loop(tmp_path / "calm")
    plant_loop(tmp_path / "left", losses=left)
    plant_loop(tmp_path / "nan", losses=bad)
    plant_loop(tmp_path / "spike", losses=spiked())
    runs = diagnosed(tmp_path)
    table = loss_table(runs)
    eventful = table[table["event"] > 0].groupby("run")["step"].agg(["min", "max"])
    assert set(eventful.index) == {"left", "spike"}
    assert eventful.loc["spike"].tolist() == [200, 209]
    assert eventful.loc["left", "max"] == STEPS - 1
    figure = loss_figure(table)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["spike or departure", "not finite", "1 run"], (
        "a log of another tool has no seed"
    )
    (ax,) = figure.axes
    ends = [text.get_text().partition(" ·")[0] for text in ax.texts]
    assert set(ends) >= {"calm", "left", "nan", "spike"}
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [list(range(400, STEPS))]
    assert ax.get_yscale() == "linear"


def test_a_loss_of_many_decades_is_drawn_on_a_logarithmic_axis(tmp_path: Path) -> None:
    losses = 10.0 ** np.linspace(1, -2, STEPS)
    plant_loop(tmp_path / "a", losses=losses)
    table = loss_table(diagnosed(tmp_path))
    assert draw_loss(table, Figure().subplots()).get_yscale() == "log"
    assert (
        figure_of("loss", diagnosed(tmp_path), Figure().subplots()).axes[0].get_ylabel() == "loss"
    )


def test_signals_holds_series_by_any_name_and_shades_events_of_the_loss(tmp_path: Path) -> None:
    series = {"train/learning_rate": 1e-3, "grad_norm": NORMS, "noise": 1.0}
    plant_loop(tmp_path / "a", loss="train/loss", losses=spiked(), **series)
    table = signals_table(diagnosed(tmp_path))
    assert set(table["signal"].dropna()) == {"train/loss", "train/learning_rate", "grad_norm"}
    shaded = table[table["kind"] == "loss event"]
    assert shaded[["step", "end"]].to_numpy().tolist() == [[200, 209]]


@pytest.mark.lengthy
def test_every_figure_of_a_log_of_a_loss_is_drawn_or_says_why_not(tmp_path: Path) -> None:
    plant_loop(tmp_path / "a", loss="train/loss", losses=spiked())
    runs = diagnosed(tmp_path)
    drawn = []
    for name, plot in PLOTS.items():
        try:
            table = plot.table(runs)
        except DoesNotApplyError:  # it needs settings
            continue
        if not table.empty:
            plot.figure(table)
            drawn.append(name)
    assert drawn == ["loss", "event-zoom", "signals"]


def test_axes_are_named_by_what_they_show() -> None:
    assert accuracy_axis("knn_heldout") == "held-out kNN accuracy, %"
    assert accuracy_axis("val_acc") == "accuracy (val_acc), %"
    assert accuracy_axis("metrics/mAP_0.5") == "metrics/mAP_0.5, %"
    assert two_lines("held-out kNN accuracy") == "held-out kNN\naccuracy"
    assert max(map(len, two_lines("a " * 40).split("\n"))) <= 18


def test_a_loss_event_belongs_to_its_own_loss(tmp_path: Path) -> None:
    run = run_of(plant_loop(tmp_path / "a", losses=spiked(200), other_loss=spiked(350)))
    assert loss_events(run, "loss") == [(200, 209)]
    assert loss_events(run, "other_loss") == [(350, 359)]


def test_a_rate_that_is_highest_when_it_is_first_recorded_has_no_warm_up(tmp_path: Path) -> None:
    for name, first, warmup in (("cosine", 9, 0), ("rises", 0, 50)):
        plant_loop(tmp_path / name, warmup=warmup)
        writer, steps = Writer(tmp_path / name, "loop"), np.arange(first, STEPS, 10)
        rates = np.cos(steps / STEPS) * np.minimum(1, (steps + 1) / (warmup + 1))
        writer.add_scalars(steps, "lr", rates)
        writer.flush()
    ends = {run.name: warmup_end(run) for run in diagnosed(tmp_path)}
    assert ends["cosine"] == 0
    assert ends["rises"] == pytest.approx(50, abs=10)


def test_the_axis_of_a_panel_names_the_accuracies_in_it(tmp_path: Path) -> None:
    steps = np.arange(40)
    for name, metric, n, k in (("a", "val_acc", 100, 0), ("b", METRIC, 200, 5)):
        run = plant_loop(tmp_path / name)
        (run / "config.yaml").write_text(f"kind: loop\nbad: {name == 'b'}\nlr: 1\n")
        writer = Writer(run, "loop")
        writer.add_accuracies(steps, metric, 0.5 + steps / 100, 0.1, n, k, math.nan)
        writer.flush()
    table = knn_table(diagnosed(tmp_path))
    assert labels(knn_figure(table)) == [knn_axis(table).replace("\n", " ")]
    assert "(" not in knn_axis(table).replace("(val_acc)", ""), "n and k differ"
    assert [labels(figure)[0] for figure in knn_panels(table.assign(panel=table["curve"]))] == [
        "accuracy (val_acc), % (n = 100)",
        "held-out kNN accuracy, % (k = 5, n = 200)",
    ]
