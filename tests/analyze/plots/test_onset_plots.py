"""The figures of onsets, against planted bursts and against loops over the recorded values."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import stabkit
from stabkit.analyze.across_runs import bursts_and_dips, onsets
from stabkit.analyze.cells import wrapped
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots import PLOTS, grad_norms, layer_map
from stabkit.analyze.plots.event_zoom import (
    PANELS,
    draw_event_zoom,
    event_zoom_figure,
    event_zoom_rows,
    event_zoom_table,
)
from stabkit.analyze.plots.grad_norms import AROUND, grad_norms_figure, grad_norms_table
from stabkit.analyze.plots.layer_map import BINS, draw_layer_map, layer_map_figure, layer_map_table
from stabkit.analyze.plots.layer_styles import styles_of, telling_layers
from stabkit.analyze.plots.onset_order import onset_order_figure, onset_order_table
from stabkit.detect import event_association
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer
from tests.analyze.conftest import (
    DIP,
    EVERY,
    LAYERS,
    SPIKE,
    STEPS,
    diagnosed,
    diagnosed_run,
    plant_run,
)

MOST = 3  # cells of a figure, in place of twelve: the figures of two more are cut as well
BAD = "lr 0.02 false 0"  # the run of `grid` with a burst and a dip


def test_onsets_of_runs_are_the_planted_ones(grid_runs: Diagnoses) -> None:
    found = onsets(grid_runs)
    assert found["run"].nunique() == 2
    assert set(found["burst"]) == {0}
    for _, burst in found.groupby("run"):
        assert burst[["layer", "onset", "lag"]].to_numpy().tolist() == [
            ["patch_embed", SPIKE, 0], ["blocks.0", SPIKE + 2, 2]
        ]  # fmt: skip


def test_a_dip_counts_from_the_evaluation_that_first_shows_it(grid_runs: Diagnoses) -> None:
    """So a burst between the last good evaluation and the first bad one comes before the dip."""
    watched = bursts_and_dips(grid_runs)
    assert len(watched) == 8
    assert [list(run.causes) for run in watched if len(run.causes)] == [[SPIKE], [SPIKE]]
    shown = [step for run in watched for step in run.effects]
    assert shown == [DIP[0]] * 2
    assert {run.span for run in watched} == {(15, STEPS - 1)}, "the fourth evaluation, past step 12"
    assert [step for run in watched for step in run.late] == [EVERY] * 2
    assert len({run.schedule for run in watched}) == 4, "two seeds each"
    found = event_association(watched, window=30)
    assert (found.observed, found.effects, found.lead) == (2, 2, DIP[0] - SPIKE)
    assert (found.before, found.after, found.p_value) == (2, 0, 0.25)
    assert found.shift_p < 0.01
    assert found.other_runs_p == 1, "both seeds burst at one time"


def test_runs_too_short_to_find_anything_are_not_watched(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", "short")
    writer.add_eval(0, "knn_heldout", 0.5, 0.1, 20, 0.07, np.arange(10) < 5)
    writer.flush()
    assert bursts_and_dips(diagnosed(tmp_path)) == []


def test_the_map_holds_the_logarithm_of_every_value(grid_runs: Diagnoses, whole_grid: Path) -> None:
    table = layer_map_table(grid_runs)
    mine = table[table["run"] == BAD]
    width = int(mine["width"].iloc[0])
    assert STEPS / BINS <= width < STEPS / BINS + 1
    signals = stabkit.open_run(whole_grid / BAD).signals()
    for layer in LAYERS:
        values = signals.loc[signals["layer"] == layer, "grad_norm"].to_numpy(dtype=float)
        expected = [
            np.log2(values[a : a + width].max() / np.median(values))
            for a in range(0, STEPS, width)
        ]  # fmt: skip
        # float32 values: a relative error of 2**-24 in each
        np.testing.assert_allclose(mine.loc[mine["layer"] == layer, "log2"], expected, atol=1e-6)
    spiked = mine[mine["spikes"] > 0]
    assert spiked["layer"].tolist() == ["patch_embed", "blocks.0"]
    assert (spiked["step"] <= [SPIKE, SPIKE + 2]).all()
    assert (spiked["step"] + width > [SPIKE, SPIKE + 2]).all()
    inside = mine.loc[mine["dip"], "step"]
    (dip,) = diagnosed_run(whole_grid / BAD).accuracy.dips.to_dict("records")
    assert (inside.min(), inside.max()) == (
        dip["onset"] // width * width,
        dip["end"] // width * width,
    )


def test_the_map_marks_the_begin_of_a_dip_that_does_not_recover(tmp_path: Path) -> None:
    """A bar to the end would look like one long dip."""
    run = plant_run(tmp_path / "run")
    shutil.rmtree(run / "evals")
    writer = Writer(run, "planted")
    for step in range(0, STEPS + 1, 5):
        correct = np.linspace(0, 1, 1000) < (0.3 + step / 1000 if step < 200 else 0.15)
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()
    table = layer_map_table(diagnosed(tmp_path))
    assert not table["dip"].any()
    (begin,) = table.loc[table["falls"], "step"].unique()
    assert begin <= 200 <= begin + 5 + table["width"].iloc[0]
    drawn = draw_layer_map(table, Figure().subplots()).lines
    (mark,) = (line for line in drawn if len(line.get_ydata()) and line.get_ydata()[0] == 1.03)
    assert mark.get_marker() == "v"
    labels = [text.get_text() for text in layer_map_figure(table).legends[0].get_texts()]
    assert "a dip to the end begins" in labels
    assert "accuracy in a dip that recovered" not in labels


def test_the_map_draws_the_table_first_layer_on_top_frozen_ones_empty(grid_runs: Diagnoses) -> None:
    table = layer_map_table(grid_runs)
    frozen = table[table["run"] == "lr 0.001 true 0"]
    assert set(frozen["layer"]) == set(LAYERS[1:])
    ax = draw_layer_map(frozen, Figure().subplots(), LAYERS)
    drawn = np.ma.masked_invalid(ax.collections[0].get_array())
    assert drawn.mask[0].all()
    np.testing.assert_array_equal(
        drawn[1:], frozen.pivot(index="depth", columns="step", values="log2")
    )
    assert [t.get_text() for t in ax.get_yticklabels()] == LAYERS
    assert ax.yaxis_inverted()
    figure = layer_map_figure(table)
    panels = [panel for panel in figure.axes if panel.get_title()]
    marks = [line for panel in panels for line in panel.lines if line.get_marker() == "v"]
    assert sum(len(line.get_xdata()) for line in marks) == 2


def test_one_bad_value_empties_its_stretch_of_the_map(tmp_path: Path) -> None:
    plant_hostile(tmp_path / "run", STEPS)
    table = layer_map_table(diagnosed(tmp_path)).set_index(["layer", "step"])["log2"]
    width = 2
    for layer, step in [("patch_embed", 100), ("blocks.0", 200), ("norm", 300)]:
        assert np.isnan(table[layer, step // width * width])
    assert table.isna().sum() == 3


def test_rows_of_an_event_hold_what_was_recorded_around_it(whole_grid: Path) -> None:
    run = diagnosed_run(whole_grid / BAD)
    rows = event_zoom_rows(run, DIP[0], DIP[1])
    margin = DIP[1] - DIP[0]
    assert set(rows["panel"]) == set(PANELS)
    assert (rows["offset"] == rows["step"] - DIP[0]).all()
    assert rows["step"].between(DIP[0] - margin, DIP[1] + margin).all()
    loss = rows[rows["panel"] == "loss"].set_index("step")["value"]
    expected = run.stored.scalar("loss").loc[DIP[0] - margin : DIP[1] + margin]
    np.testing.assert_array_equal(loss, expected)
    knn = rows[rows["panel"] == "accuracy"]
    assert knn["step"].tolist() == list(range(DIP[0] - margin, DIP[1] + margin + 1, EVERY))
    gradients = rows[rows["panel"] == "gradient"]
    assert set(gradients["series"]) == {"patch_embed", "blocks.1", "norm"}
    assert gradients.loc[gradients["spike"], ["series", "step"]].to_numpy().tolist() == [
        ["patch_embed", SPIKE]
    ]
    ax = draw_event_zoom(gradients, Figure().subplots())
    at = gradients[gradients["series"] == "norm"]
    assert any(np.array_equal(line.get_xydata(), at[["offset", "value"]]) for line in ax.lines)


def test_an_event_that_was_not_over_when_the_run_ended_has_a_line_and_no_band(
    whole_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = diagnosed_run(whole_grid / BAD)
    (found,) = run.accuracy.dips.to_dict("records")
    both = int(found["onset"]), int(found["end"])
    rows = event_zoom_rows(run, *both)
    assert rows["end"].unique().tolist() == [both[1]]
    (band,) = draw_event_zoom(rows[rows["panel"] == "loss"], Figure().subplots()).patches
    assert (band.get_x(), band.get_width()) == (0, both[1] - both[0])
    assert "the event" in shown(event_zoom_figure(rows))

    never = run.accuracy.dips.assign(recovery=np.nan)
    monkeypatch.setattr(type(run.accuracy), "dips", property(lambda _: never))
    still_open = event_zoom_rows(run, *both)
    assert still_open["end"].isna().all()
    assert still_open.drop(columns="end").equals(rows.drop(columns="end")), "the same is shown"
    again = pd.read_csv(io.StringIO(still_open.to_csv(index=False)))
    for table in (still_open, again):
        ax = draw_event_zoom(table[table["panel"] == "loss"], Figure().subplots())
        assert not ax.patches
        assert any(set(line.get_xdata()) == {0} for line in ax.lines), "the line at the onset"
        assert "the event" not in shown(event_zoom_figure(table))
        below = event_zoom_figure(table).axes[-1].get_xlabel()
        assert below.endswith("not over when the run ended")


def test_a_zoom_says_the_epoch_of_the_onset_and_of_how_many_runs_it_shows_one(
    grid_runs: Diagnoses,
) -> None:
    table = event_zoom_table(grid_runs)
    settings = next(iter(grid_runs)).settings
    per_epoch = settings["data.num_train"] // settings["train.batch"]
    rows = table[table["event"] == table["event"].iloc[0]]
    onset = rows["onset"].iloc[0]
    figure = event_zoom_figure(rows)
    label = f"steps since the onset, step {onset}"
    assert figure.axes[-1].get_xlabel() == f"{label} (epoch {onset / per_epoch:.1f})"
    assert "n = 1 of 8 runs in each column" in shown(figure)
    figure = event_zoom_figure(rows.assign(per_epoch=np.nan, of=1))
    assert figure.axes[-1].get_xlabel() == label
    assert not any("n = 1" in text for text in shown(figure))


def shown(figure: Figure) -> list[str]:
    """Return the entries of the legend of a figure."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.lengthy
def test_the_zoom_takes_the_deepest_dip_and_the_largest_burst(tmp_path: Path) -> None:
    plant_run(tmp_path / "shallow", "optim.lr=1e-3", dip=0.06)
    plant_run(tmp_path / "deep", "optim.lr=2e-3", dip=0.12)
    plant_run(tmp_path / "burst", "optim.lr=3e-3", spike=True)
    table = event_zoom_table(diagnosed(tmp_path))
    assert table["event"].unique().tolist() == [
        "deepest dip, base lr 0.002", "largest gradient burst, base lr 0.003"
    ]  # fmt: skip
    assert table.groupby("event")["onset"].first().tolist()[1] == SPIKE
    figure = event_zoom_figure(table)
    assert len(figure.axes) == 6


def test_one_incident_has_one_column(tmp_path: Path) -> None:
    for seed in (0, 1):
        plant_run(tmp_path / f"both {seed}", "optim.lr=1e-3", dip=0.12, spike=True, seed=seed)
    (name,) = event_zoom_table(diagnosed(tmp_path))["event"].unique()
    assert re.match("deepest dip, (largest )?gradient burst, ", name)
    whole = event_zoom_table(diagnosed(tmp_path / "both 0"))
    assert whole["event"].unique().tolist() == ["deepest dip, largest gradient burst, both 0"]


def test_without_any_event_the_zoom_says_so(tmp_path: Path) -> None:
    plant_run(tmp_path / "a")
    table = event_zoom_table(diagnosed(tmp_path))
    (event,) = table["event"].unique()
    assert event.startswith("no event found, largest rise of patch_embed")
    assert table["panel"].nunique() == 3


@pytest.mark.lengthy
def test_the_order_has_a_dot_a_burst_and_the_median_between(tmp_path: Path) -> None:
    for seed in range(7):
        plant_run(tmp_path / f"{seed}", f"optim.lr={seed + 1}e-3", spike=True, seed=seed)
    table = onset_order_table(diagnosed(tmp_path))
    order = table[table["kind"] == "layer"].set_index("layer")
    assert list(order.index) == LAYERS, "layers that never spiked have their row too"
    assert order["events"].tolist() == [7, 7, 0, 1], "one of the 14 healthy layers alarms by chance"
    assert order["first"].tolist() == [7, 0, 0, 0]
    assert order.loc["blocks.0", ["lag", "low", "high"]].tolist() == [2, 2, 2]
    (ax,) = onset_order_figure(table).axes
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [sorted(line.get_xdata()) for line in dots] == [[0] * 7, [2] * 7, [], [3]]
    title = " ".join(ax.get_title("left").split())
    assert title.startswith("The shallowest layer spikes first. The deepest layer spiked after")
    assert "in 7 bursts, before it in 0, and in the same step in 0" in title
    assert "median lag 2 steps (95 % interval 2 to 3)" in title
    texts = [text.get_text() for text in ax.texts]
    assert texts[:4] == ["7 of 7", "0", "0 of 7", "0"]


def test_the_order_says_in_words_that_there_is_none(tmp_path: Path) -> None:
    plant_run(tmp_path / "a")
    table = onset_order_table(diagnosed(tmp_path))
    (ax,) = onset_order_figure(table).axes
    assert ax.get_title("left") == "No order to show: these runs have no gradient burst."


@pytest.mark.lengthy
def test_grad_norms_zooms_on_the_burst_and_puts_first_and_last_layers_in_front(
    grid_runs: Diagnoses,
) -> None:
    table = grad_norms_table(grid_runs)
    near = table[table["zoom"].astype(bool)]
    assert set(near["run"]) == {BAD}
    assert (near["step"].min(), near["step"].max()) == (SPIKE - AROUND, SPIKE + AROUND)
    (zoom,) = [ax for ax in grad_norms_figure(table).axes if ax.get_title().startswith("zoomed")]
    lines = [line for line in zoom.lines if len(line.get_xdata()) == 2 * AROUND + 1]
    gray = [line for line in lines if line.get_color() == "0.8"]
    assert (len(lines), len(gray)) == (len(LAYERS), 1), "all but blocks.0"


def test_the_layers_in_front_are_the_first_the_last_block_and_the_last() -> None:
    def named(*layers: str) -> list[str]:
        return telling_layers(pd.DataFrame({"layer": layers, "depth": range(len(layers))}))

    assert named("patch_embed", "blocks.0", "blocks.1", "norm", "predictor") == [
        "patch_embed", "blocks.1", "predictor"
    ]  # fmt: skip
    assert named("conv1", "fc") == ["conv1", "fc"]
    assert named("wte", "wpe", "h.0", "h.1", "ln_f", "lm_head") == ["wte", "h.1", "lm_head"]
    assert named("e", "layers.9", "layers.10", "norm") == ["e", "layers.10", "norm"]
    assert named("conv1", "layer1.0", "layer1.1", "layer4.0", "fc") == ["conv1", "layer4.0", "fc"]
    assert named("time.0", "time.2", "downs.0", "downs.1", "mid", "ups.0", "ups.1", "out") == [
        "time.0", "ups.1", "out"
    ]  # fmt: skip
    assert named("0", "2") == ["0", "2"]
    assert named("conv1", "layer1", "fc") == ["conv1", "layer1", "fc"]
    assert named("blocks.0") == ["blocks.0"]
    assert named("wte", "h.0", "h.1", "ln_f", "lm_head") == ["wte", "h.1", "lm_head"]
    assert named("conv1", "layer1.0", "layer1.1", "layer2.0", "fc") == ["conv1", "layer2.0", "fc"]
    assert named() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base lr 0.1", "base lr 0.1"),
        ("learned patch projection, base lr 0.1", "learned patch projection\nbase lr 0.1"),
        ("a, b, c", "a, b, c"),
        (
            "Loss spike of a long name at step 18,000: 2",
            "Loss spike of a long name at step\n18,000: 2",
        ),
        ("", ""),
        ("y" * 200, f"{'y' * 34}\n{'y' * 34}\n{'y' * 33}…"),
        ("x" * 40, f"{'x' * 34}\n{'x' * 6}"),
    ],
)
def test_labels_are_broken_after_commas(text: str, expected: str) -> None:
    assert wrapped(text) == expected


def plant_hostile(folder: Path, steps: int) -> None:
    """Not finite, zero and missing values; a loss that turns to infinity."""
    rng = np.random.default_rng(0)
    writer = Writer(folder, "hostile")
    grads = np.exp(0.1 * rng.normal(size=(steps, len(LAYERS)))).astype(np.float32)
    grads[100, 0], grads[200, 1], grads[300, 3] = np.nan, np.inf, 0
    present = np.zeros_like(grads, dtype=bool)
    missing = dict.fromkeys(SIGNALS, present)
    writer.add_layers(np.arange(steps), LAYERS, dict.fromkeys(SIGNALS, grads), missing)
    writer.add_scalars(np.arange(steps), "loss", np.where(np.arange(steps) < 150, 2.0, np.inf))
    writer.flush()


def hostile_runs(folder: Path, case: str) -> None:
    if case == "values":
        plant_hostile(folder / "run", 400)
    if case == "many cells":
        for i in range(MOST + 2):
            plant_run(folder / f"{i}", f"optim.lr={i + 1}e-3", spike=i % 2 == 0, dip=0.01 * i)
    if case == "long name":
        plant_run(folder / ("a_name_without_any_comma_" * 8), spike=True)
    if case == "no evaluations":
        plant_run(folder / "run", spike=True)
        for part in (folder / "run" / "evals").iterdir():
            part.unlink()
    if case == "few steps":
        writer = Writer(folder / "run", "few")
        grads = np.ones((2, len(LAYERS)), dtype=np.float32)
        missing = dict.fromkeys(SIGNALS, np.zeros_like(grads, dtype=bool))
        writer.add_layers(np.arange(2), LAYERS, dict.fromkeys(SIGNALS, grads), missing)
        writer.flush()


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "case", ["values", "many cells", "long name", "no evaluations", "few steps"]
)
def test_figures_of_gradients_survive_what_runs_bring(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (grad_norms, layer_map):
        monkeypatch.setattr(module, "MAX_CELLS", MOST)
    hostile_runs(tmp_path / "runs", case)
    runs = diagnosed(tmp_path / "runs")
    panels, others = ("grad-norms", "layer-map"), ("event-zoom", "onset-order")
    for name in panels if case == "many cells" else panels + others:
        table = PLOTS[name].table(runs)
        if (name, case) == ("event-zoom", "few steps"):
            assert table.empty, "nothing to compare a value with"
            continue
        again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
        figure = PLOTS[name].figure(again)
        if case == "values":
            figure.savefig(io.BytesIO(), dpi=30)
        else:
            figure.set_layout_engine(None)  # it takes longer than all else, and reads no values
            figure.draw_without_rendering()


def test_a_long_run_is_drawn_in_few_stretches_and_keeps_its_spikes(tmp_path: Path) -> None:
    steps = 20_000
    rng = np.random.default_rng(0)
    grads = np.exp(0.1 * rng.normal(size=(steps // 10, len(LAYERS)))).astype(np.float32)
    grads[1234, 0] *= 64
    writer = Writer(tmp_path / "run", "long")
    missing = dict.fromkeys(SIGNALS, np.zeros_like(grads, dtype=bool))
    every = np.arange(0, steps, 10)
    writer.add_layers(every, LAYERS, dict.fromkeys(SIGNALS, grads), missing)
    writer.flush()
    table = layer_map_table(diagnosed(tmp_path))
    assert len(table) <= BINS * len(LAYERS)
    assert table["width"].iloc[0] % 10 == 0, "whole numbers of measurements, so no gaps"
    assert np.diff(sorted(table["step"].unique())).max() == table["width"].iloc[0]
    top = table.loc[table["log2"].idxmax()]
    assert top["step"] <= 12340 < top["step"] + top["width"]
    assert top["spikes"] == 1
    assert diagnosed_run(tmp_path / "run").gradients.bursts["onset"].tolist() == [12340]


def test_how_long_a_dip_lasted_in_every_unit(grid: Path) -> None:
    run = diagnosed_run(grid / "lr 0.02 false 0")
    (dip,) = run.accuracy.dips.to_dict("records")
    assert dip["steps"] == dip["end"] - dip["onset"] == dip["recovery"] - dip["onset"]
    assert dip["samples"] == dip["steps"] * run.settings["train.batch"]
    assert dip["epochs"] == dip["samples"] / run.settings["data.num_train"]
    (run.path / "config.yaml").unlink()
    (dip,) = diagnosed_run(run.path).accuracy.dips.to_dict("records")
    assert np.isnan(dip["samples"])
    assert np.isnan(dip["epochs"])


def test_layers_in_front_are_told_apart_without_color() -> None:
    styles = styles_of(["patch_embed", "blocks.5", "predictor"])
    assert len({str(style["linestyle"]) for style in styles.values()}) == 3
