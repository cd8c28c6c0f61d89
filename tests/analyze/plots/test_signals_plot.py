"""The figure of every signal, against loops over the recorded values and planted troubles."""

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from stabkit.analyze.plots import PLOTS
from stabkit.analyze.plots.layer_map import BINS
from stabkit.analyze.plots.signal_rows import signal_rows
from stabkit.analyze.plots.signal_styles import LAYERS as STYLES
from stabkit.analyze.plots.signal_styles import RUN
from stabkit.analyze.plots.signals import MAX_RUNS, draw_signals, signals_figure, signals_table
from stabkit.analyze.plots.style import ramp
from stabkit.analyze.report import figures
from stabkit.analyze.report.contents import make_report
from stabkit.monitor.catalog import SIGNALS
from stabkit.store.writer import Writer
from tests.analyze.conftest import LAYERS, STEPS, diagnosed, diagnosed_run, plant_run

LONG, SPIKE, HOLE = 1000, 777, 555  # steps: all, of a spike and a drop, of values not finite
EVERY = 2  # steps between probes: two in a stretch, of which one stands out
BETA2 = {0: 0.999, 400: 0.95}


def plant_signals(folder: Path, **scalars: np.ndarray) -> tuple[dict, dict]:
    """Norms at every step, a probe of the blocks every few; returns values and what is null."""
    rng = np.random.default_rng(0)
    names = ["grad_norm", "update_ratio", "adam_rms", "nonfinite_count", "zero_count"]
    names += ["attention_entropy", "my_own"]
    shape = (LONG, len(LAYERS))
    values = {name: rng.lognormal(size=shape).astype(np.float32) for name in names}
    values["grad_norm"][SPIKE, 0] = 1e4
    values["grad_norm"][HOLE, 1], values["grad_norm"][HOLE, 2] = np.inf, np.nan
    values["nonfinite_count"][:] = 0
    values["nonfinite_count"][HOLE, 1:3] = 7
    values["zero_count"][:] = 0
    at_probe = SPIKE // EVERY * EVERY
    values["attention_entropy"][at_probe, 1] = 1e-3
    missing = {name: np.zeros(shape, dtype=bool) for name in names}
    missing["attention_entropy"][:] = True
    missing["attention_entropy"][::EVERY, 1:3] = False
    writer = Writer(folder, folder.name)
    writer.add_layers(np.arange(LONG), LAYERS, values, missing)
    writer.add_scalars(np.array([*BETA2]), "beta2", np.array([*BETA2.values()]))
    writer.add_scalars(np.arange(LONG), "images_per_s", np.ones(LONG))
    for name, series in scalars.items():
        writer.add_scalars(np.linspace(0, LONG - 1, len(series)).astype(int), name, series)
    writer.flush()
    return values, missing


def again(table: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(table.to_csv(index=False)))


@pytest.mark.lengthy
def test_a_stretch_holds_the_median_and_what_stands_out(tmp_path: Path) -> None:
    values, missing = plant_signals(tmp_path / "run", loss=np.arange(LONG) % 7.0)
    table = signals_table(diagnosed(tmp_path))
    width = -(-LONG // BINS)
    rows = table[table["kind"] == "layer"].set_index(["signal", "layer", "step"])
    assert rows.index.is_unique
    expected = 0
    for name in ("grad_norm", "update_ratio", "adam_rms", "attention_entropy", "my_own"):
        for i, layer in enumerate(LAYERS):
            for step in range(0, LONG, width):
                there = ~missing[name][step : step + width, i]
                raw = values[name][step : step + width, i][there]
                if not there.any():
                    assert (name, layer, step) not in rows.index
                    continue
                expected += 1
                finite = raw[np.isfinite(raw)]
                row = rows.loc[(name, layer, step)]
                extreme = finite.min() if name == "attention_entropy" else finite.max()
                assert row["extreme"] == (extreme if len(finite) == len(raw) else math.inf)
                assert row["median"] == np.float32(np.median(finite))
                assert row["end"] == min(step + width, LONG) - 1
    assert len(rows) == expected + len(rows.loc[["nonfinite_count"]])
    loss = table[table["signal"] == "loss"].set_index("step")
    assert loss["extreme"].tolist() == [
        max(s % 7 for s in range(a, min(a + width, LONG))) for a in range(0, LONG, width)
    ]


def test_evaluations_and_dips_are_among_them(
    whole_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = diagnosed_run(whole_grid / "lr 0.02 false 0")
    table = signals_table(diagnosed(run.path))
    assert table["of"].unique().tolist() == [1]
    knn, evals = table[table["signal"] == "knn_heldout"], run.evals("knn_heldout")
    width = -(-STEPS // BINS)
    np.testing.assert_array_equal(knn["step"], evals["step"] // width * width)
    np.testing.assert_allclose(knn["median"], evals["value"], rtol=2**-23)  # as float32
    (dip,) = table[table["kind"] == "dip"].to_dict("records")
    (found,) = run.accuracy.dips.to_dict("records")
    assert (dip["step"], dip["end"]) == (found["onset"], found["end"])
    never = run.accuracy.dips.assign(recovery=np.nan)
    monkeypatch.setattr(type(run.accuracy), "dips", property(lambda _: never))
    rows = signal_rows(run)
    (still_open,) = rows[rows["kind"] == "dip"].to_dict("records")
    assert still_open["step"] == still_open["end"] == found["onset"], "a line, no band to the end"


def ticks(figure: Figure, signal: str) -> dict[str, float]:
    figure.canvas.draw()
    (ax,) = (ax for ax in figure.axes if ax.get_title() == signal)
    return dict(zip((t.get_text() for t in ax.get_yticklabels()), ax.get_yticks(), strict=True))


@pytest.mark.lengthy
def test_an_accuracy_is_in_percent_and_nothing_else_is(tmp_path: Path) -> None:
    plant_run(tmp_path / "run")
    table = signals_table(diagnosed(tmp_path))
    figure = signals_figure(again(table))
    accuracies, losses = ticks(figure, "knn_heldout"), ticks(figure, "loss")
    assert accuracies["40 %"] == pytest.approx(0.4), "the accuracy rises from 0.3 to 0.6"
    assert list(accuracies) == [f"{100 * share:g} %" for share in accuracies.values()]
    assert list(losses) == [f"{loss:g}" for loss in losses.values()]


@pytest.mark.lengthy
def test_signals_that_are_zero_throughout_or_nobody_asks_for_have_no_panel(tmp_path: Path) -> None:
    plant_signals(tmp_path / "run", lr=np.zeros(LONG), probe_rank=np.linspace(20, 4, 50))
    table = signals_table(diagnosed(tmp_path))
    shown = ["grad_norm", "nonfinite_count", "update_ratio", "adam_rms", "attention_entropy"]
    assert list(table["signal"].unique()) == [*shown, "my_own", "probe_rank"]
    figure = signals_figure(again(table))
    titles = [ax.get_title() for ax in figure.axes if ax.axison]
    assert titles == [*shown, "my_own", "probe_rank"]


@pytest.mark.lengthy
def test_limits_are_where_they_belong(tmp_path: Path) -> None:
    plant_signals(
        tmp_path / "run",
        step_sharpness=np.array([0.1, 0.2, 500.0]),
        gradient_sharpness=np.array([-0.3, 0.2, 0.4]),
        preconditioned_sharpness=np.array([0.1, np.inf, np.nan]),
    )
    figure = signals_figure(signals_table(diagnosed(tmp_path)))
    panels = {ax.get_title(): ax for ax in figure.axes}

    def guides(name: str) -> list[float]:
        dashed = [line for line in panels[name].lines if line.get_color() == "0.45"]
        return [float(line.get_ydata()[0]) for line in dashed]

    for name in ("step_sharpness", "gradient_sharpness", "preconditioned_sharpness", "adam_rms"):
        assert guides(name) == [1.0]
        low, high = panels[name].get_ylim()
        assert low < 1 < high, f"{name}: the limit is inside the panel"
    assert guides("update_ratio") == [1e-3]
    assert guides("grad_norm") == []
    ceilings = [segment for c in panels["adam_rms"].collections for segment in c.get_segments()]
    np.testing.assert_allclose(
        ceilings,
        [
            [(0, 1 / np.sqrt(0.001)), (400, 1 / np.sqrt(0.001))],
            [(400, 1 / np.sqrt(0.05)), (LONG - 1, 1 / np.sqrt(0.05))],
        ],
        rtol=2**-22,  # the table holds float32
    )
    scales = {name: ax.get_yscale() for name, ax in panels.items() if name}
    assert (scales["grad_norm"], scales["attention_entropy"]) == ("log", "linear")
    assert (scales["step_sharpness"], scales["gradient_sharpness"]) == ("symlog", "linear")
    crosses = [ln for ln in panels["preconditioned_sharpness"].lines if ln.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [2]


@pytest.mark.lengthy
def test_depth_is_lightness_and_a_spike_of_one_step_is_drawn(tmp_path: Path) -> None:
    plant_signals(tmp_path / "run")
    table = signals_table(diagnosed(tmp_path))
    ax = draw_signals(table[table["signal"] == "grad_norm"], Figure().subplots())
    medians = [line for line in ax.lines if line.get_linewidth() >= 0.6 and len(line.get_xdata())]
    drawn = [to_rgb(line.get_color()) for line in medians if line.get_marker() == "None"]
    assert drawn == ramp(len(LAYERS))
    peaks = [np.nanmax(line.get_ydata().astype(float)) for line in ax.lines]
    assert max(peaks) == 1e4
    assert ax.get_ylim()[1] > 1e4
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [to_rgb(line.get_color()) for line in crosses] == ramp(len(LAYERS))[1:3]
    blocks = draw_signals(table[table["signal"] == "attention_entropy"], Figure().subplots())
    assert blocks.get_ylim()[0] < 1e-3, "what alarms in an entropy is its smallest value"


@pytest.mark.lengthy
def test_only_the_worst_of_many_runs_are_drawn_on_one_scale(tmp_path: Path) -> None:
    for i in range(MAX_RUNS + 2):
        plant_run(tmp_path / f"{i}", f"optim.lr={i + 1}e-3", dip=0.04 * i)
    table = signals_table(diagnosed(tmp_path))
    assert list(table["run"].unique()) == ["base lr 0.003", "base lr 0.004", "base lr 0.005"]
    figure = signals_figure(again(table))
    assert figure.get_suptitle() == "the 3 of 5 runs that fared worst"
    panels = np.array(figure.axes, dtype=object).reshape(-1, MAX_RUNS)
    assert [ax.get_title() for ax in panels[0]] == list(table["run"].unique())
    assert [ax.get_ylabel() for ax in panels[:, 0]] == list(table["signal"].dropna().unique())
    for row in panels:
        assert len({ax.get_ylim() for ax in row}) == 1


@pytest.mark.lengthy
def test_a_signal_that_one_run_lacks_is_said_to_be_missing(tmp_path: Path) -> None:
    plant_signals(tmp_path / "1", loss=np.linspace(3, 2.9, LONG))
    writer = Writer(tmp_path / "2", "2")
    writer.add_scalars(np.arange(LONG), "loss", np.linspace(9, 8.9, LONG))
    writer.add_scalars(np.array([0]), "beta2", np.array([0.9]))  # and no adam_rms
    writer.flush()
    table = signals_table(diagnosed(tmp_path))
    panels = np.array(signals_figure(again(table)).axes, dtype=object).reshape(-1, 2)
    said = {tuple(text.get_text() for text in ax.texts) for ax in panels[:-1, 1]}
    assert said == {("not recorded",)}
    one, other = panels[-1]
    assert one.get_ylim()[1] < other.get_ylim()[0], "on one scale both would be flat"


@pytest.mark.lengthy
@pytest.mark.parametrize("value", [np.nan, np.inf, -5.0])
def test_figures_survive_values_that_no_axis_shows(tmp_path: Path, value: float) -> None:
    shape = (3, len(LAYERS))
    names = ["grad_norm", "output_kurtosis", "adam_rms"]
    writer = Writer(tmp_path / "run", "bad")
    values = {name: np.full(shape, value, dtype=np.float32) for name in names}
    writer.add_layers(np.arange(3), LAYERS, values, {n: np.zeros(shape, dtype=bool) for n in names})
    writer.add_scalars(np.arange(3), "noise_scale", np.full(3, value))
    writer.add_scalars(np.arange(3), "beta2", np.ones(3))  # a ceiling at infinity
    writer.flush()
    table = signals_table(diagnosed(tmp_path))
    figure = signals_figure(again(table))
    figure.savefig(io.BytesIO(), dpi=30)
    assert [ax.get_title() for ax in figure.axes if ax.axison] == [
        *names[::2],
        names[1],
        "noise_scale",
    ]


def test_every_signal_of_the_monitor_has_its_style() -> None:
    """But for parts and sums of the others: one of a run is drawn only if it is known how."""
    rest = {"grad_norm_total", "nonfinite_layers", "noise_trace", "noise_signal", "grad_scale"}
    assert set(SIGNALS) - set(STYLES) - set(RUN) == rest


@pytest.mark.lengthy
def test_a_report_shows_the_signals_of_its_worst_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_run(tmp_path / "fine", "optim.lr=1e-3")
    plant_run(tmp_path / "bad", "optim.lr=2e-3", dip=0.1)
    monkeypatch.setattr(figures, "PLOTS", {"signals": PLOTS["signals"]})
    titles: list[str] = []
    notes = figures.draw_notes
    monkeypatch.setattr(
        figures, "draw_notes", lambda f, runs: titles.append(f.get_suptitle()) or notes(f, runs)
    )
    (shown,) = [f for f in make_report(diagnosed(tmp_path)).figures if f.name == "signals"]
    assert "of the worst run" in shown.about
    (picture,) = shown.pictures
    assert "1 run: bad." in picture.alt
    assert titles == ["base lr 0.002"], "the name that it has everywhere on the page"
