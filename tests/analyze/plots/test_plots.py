"""Figures are compared by their data: what is drawn is what the table and the runs hold."""

import itertools
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import stabkit
from stabkit.analyze.cells import group_cells
from stabkit.analyze.csv_file import write_csv
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots import PLOTS, draw, save
from stabkit.analyze.plots.catalog import table_of
from stabkit.analyze.plots.grad_norms import grad_norms_figure, grad_norms_table
from stabkit.analyze.plots.knn import knn_figure, knn_panels, knn_table
from stabkit.analyze.plots.knn_lines import say_dips
from stabkit.analyze.plots.losses import loss_figure, loss_table
from stabkit.analyze.plots.style import ramp
from stabkit.analyze.report.interactive import charts
from stabkit.cli import main
from stabkit.rundir import RunDir, Status
from tests.analyze.conftest import DIP, EVERY, LAYERS, SPIKE, diagnosed, plant_run


def test_knn_has_a_panel_a_factor_and_a_line_a_run(grid_runs: Diagnoses) -> None:
    runs = grid_runs
    table = knn_table(runs)
    figure = knn_figure(table)
    titles = [ax.get_title() for ax in figure.axes]
    assert sorted(titles) == ["base lr 0.001", "base lr 0.02"] or titles == [
        "learned patch projection",
        "frozen patch projection",
    ]
    drawn = [
        line.get_ydata() / 100
        for ax in figure.axes
        for line in ax.lines
        if len(line.get_xdata()) > 2
    ]
    assert len(drawn) == len(runs)
    for run in runs:
        values = run.evals("knn_heldout")["value"].to_numpy()
        assert any(
            np.shape(values) == np.shape(ydata) and np.allclose(values, ydata) for ydata in drawn
        ), run.name
    shaded = [len(ax.collections) for ax in figure.axes]
    assert sum(shaded) == 2, "one dip in each of the two unstable runs"


def test_knn_table_marks_the_evaluations_in_a_dip(grid_runs: Diagnoses) -> None:
    table = knn_table(grid_runs)
    inside = table[table["dip"] > 0]
    assert inside["run"].nunique() == 2
    assert inside["step"].min() >= DIP[0] - 2 * EVERY
    assert inside["step"].max() <= DIP[1] + 2 * EVERY


def test_grad_norms_are_relative_to_each_layers_median(
    grid_runs: Diagnoses, whole_grid: Path
) -> None:
    table = grad_norms_table(grid_runs)
    layers = table[table["series"] == "grad_norm"]
    medians = layers.groupby(["run", "layer"])["relative"].median()
    np.testing.assert_allclose(medians, 1.0)
    run = stabkit.open_run(whole_grid / "lr 0.02 false 0")
    signals = run.signals()
    for layer in LAYERS:
        values = signals[signals["layer"] == layer]["grad_norm"].to_numpy()
        shown = layers[(layers["run"] == run.name) & (layers["layer"] == layer)]["relative"]
        np.testing.assert_allclose(shown, values / np.median(values), rtol=1e-6)
    spiked = layers[layers["event"].astype(bool)]
    assert set(spiked["layer"]) == {"patch_embed", "blocks.0"}
    assert spiked["step"].between(SPIKE, SPIKE + 2).all()


@pytest.mark.lengthy
def test_grad_norms_leaves_a_frozen_layer_out_of_its_panel(grid_runs: Diagnoses) -> None:
    table = grad_norms_table(grid_runs)
    frozen = table[table["cell"].str.startswith("frozen") & (table["series"] == "grad_norm")]
    assert set(frozen["layer"]) == set(LAYERS[1:])
    figure = grad_norms_figure(table)
    titles = {ax.get_title().replace("\n", " ") for ax in figure.axes} - {""}
    zoomed = {title for title in titles if title.startswith("zoomed")}
    assert len(titles - zoomed) == 4
    assert zoomed == {"zoomed, learned patch projection base lr 0.02, seed 0"}
    assert all("seed 0" in title for title in titles)


def test_the_depth_beside_a_dip_is_that_of_the_tables_on_a_rising_curve_too() -> None:
    """The lowest evaluation may come before the trough, which lies farthest below the trend."""
    frame = pd.DataFrame({"run": "a", "curve": "c", "step": range(5), "recovered": True})
    frame["value"] = [0.7, 0.60, 0.61, 0.63, 0.8]
    frame = frame.assign(dip=[0, 1, 1, 1, 0], depth=0.185, ceiling=0.63 + 0.185)
    ax = Figure().subplots()
    say_dips(ax, frame, {"c": {"color": "black"}})
    assert [text.get_text() for text in ax.texts] == ["-18.5 pt"]


@pytest.mark.lengthy
def test_lines_of_knn_are_named_where_they_end_with_the_final_level(grid_runs: Diagnoses) -> None:
    table = knn_table(grid_runs)
    figure = knn_figure(table)
    texts = {text.get_text() for ax in figure.axes for text in ax.texts}
    for (_, curve), rows in table.groupby(["panel", "curve"]):
        levels = [run.accuracy.level for run in grid_runs if run.name in set(rows["run"])]
        assert f"{curve} · {100 * np.mean(levels):.1f}" in {t.replace("\n", " ") for t in texts}
    depths = [100 * d for run in grid_runs for d in run.accuracy.dips["depth"]]
    assert all(any(f"-{depth:.1f} pt" in text for text in texts) for depth in depths)
    # every panel drawn alone has the scale that it has beside the others
    limits = {ax.get_ylim() for one in (figure, *knn_panels(table)) for ax in one.axes}
    assert len(limits) == 1


@pytest.mark.lengthy
def test_a_mean_of_knn_is_that_of_the_runs_that_finished(tmp_path: Path) -> None:
    """A run under way is drawn, but half a training has no final accuracy."""
    for seed in range(3):
        plant_run(tmp_path / f"{seed}", seed=seed)
    RunDir(tmp_path / "2").write_status(Status("failed", 100, 500))
    one, two, failed = runs = diagnosed(tmp_path)
    table = knn_table(runs)
    table.loc[table["run"] == failed.name, "value"] -= 0.2
    figure = knn_figure(table)
    said = [text.get_text().rpartition(" · ")[2] for text in figure.axes[0].texts]
    assert f"{100 * np.mean([one.accuracy.level, two.accuracy.level]):.1f}" in said
    assert figure.get_supxlabel() == "n = 3 seeds; means without 1 unfinished run"
    alone = knn_figure(table[table["run"] == failed.name])
    ends = [" ".join(text.get_text().split()).rpartition(" · ")[2] for text in alone.axes[0].texts]
    assert f"{100 * (failed.accuracy.level - 0.2):.1f} so far" in ends
    assert "without" not in alone.get_supxlabel()
    names = [line["name"] for line in json.loads(charts(runs)[0].data)["data"]]
    assert [name.endswith(" so far") for name in names] == [False, False, True]


@pytest.mark.lengthy
def test_a_mean_of_last_losses_is_that_of_the_runs_that_finished(tmp_path: Path) -> None:
    for seed in range(2):
        for lr in ("1e-3", "2e-2"):
            plant_run(tmp_path / f"{lr} {seed}", f"optim.lr={lr}", seed=seed)
    RunDir(tmp_path / "2e-2 1").write_status(Status("failed", 100, 500))
    table = loss_table(diagnosed(tmp_path))
    table.loc[table["run"] == "2e-2 1", "value"] += 1
    figure = loss_figure(table)
    assert _ends(figure) == ["1.00", "1.00"]
    (drawn,) = [text.get_text() for text in figure.legends[0].get_texts()]
    assert drawn == "n = 2 seeds; means without 1 unfinished run"
    alone = loss_figure(table.assign(finished=False))
    assert _ends(alone) == ["1.00 so far", "1.50 so far"]


def _ends(figure: Figure) -> list[str]:
    """Return what stands behind the names at the ends of lines."""
    texts = [text.get_text() for text in figure.axes[0].texts]
    return [text.rpartition(" · ")[2].replace("\n", " ") for text in texts if " · " in text]


@pytest.mark.lengthy
def test_a_dip_that_never_ended_is_marked_but_not_shaded(grid: Path) -> None:
    """A band to the end of the run would look like a confidence interval."""
    table = knn_table(diagnosed(grid))
    table.loc[table["dip"] > 0, "recovered"] = False
    figure = knn_figure(table)
    assert not any(ax.collections for ax in figure.axes)
    marks = [line for ax in figure.axes for line in ax.lines if line.get_marker() == "v"]
    assert len(marks) == 2
    assert any("not recovered" in text.get_text() for ax in figure.axes for text in ax.texts)


@pytest.mark.lengthy
def test_the_end_of_the_warmup_and_the_epochs_are_drawn(grid_runs: Diagnoses) -> None:
    table = knn_table(grid_runs)
    settings = next(iter(grid_runs)).settings
    assert set(table["warmup"]) == {settings["optim.warmup_steps"]}
    assert set(table["per_epoch"]) == {settings["data.num_train"] // settings["train.batch"]}
    (ax, *_) = knn_figure(table).axes
    assert [child.get_xlabel() for child in ax.child_axes] == ["epoch"]
    unknown = table.assign(per_epoch=np.nan)
    assert not knn_figure(unknown).axes[0].child_axes


EPOCHS = ("grad-norms", "knn", "layer-map", "loss", "optimizer", "signals")  # figures over steps
DIVIDED_BY = {"grad-norms": "cell", "layer-map": "cell", "loss": "panel", "signals": "run"}


@pytest.fixture
def two_optimizers(grid_runs: Diagnoses, monkeypatch: pytest.MonkeyPatch) -> Diagnoses:
    """Return the runs of the grid, those of the larger rate as if trained by another optimizer."""
    for run in grid_runs:
        if run.settings["optim.lr"] > 1e-2:
            monkeypatch.setitem(run.settings, "optim.name", "lamb")
    return grid_runs


@pytest.mark.lengthy
@pytest.mark.parametrize("name", EPOCHS)
def test_a_figure_over_steps_has_an_axis_of_epochs_if_they_are_known(
    two_optimizers: Diagnoses, name: str
) -> None:
    table = PLOTS[name].table(two_optimizers)
    settings = next(iter(two_optimizers)).settings
    per_epoch = settings["data.num_train"] // settings["train.batch"]
    of_epochs = [
        child
        for ax in PLOTS[name].figure(table).axes
        for child in ax.child_axes
        if child.get_xlabel() == "epoch"
    ]
    assert of_epochs
    for axis in of_epochs:
        steps, epochs = axis._parent.get_xlim(), axis._functions[0]  # of matplotlib
        assert [epochs(step) for step in steps] == [step / per_epoch for step in steps]
    if name in DIVIDED_BY:  # one panel: all are drawn alike
        table = table[table[DIVIDED_BY[name]] == table[DIVIDED_BY[name]].iloc[0]]
    unknown = PLOTS[name].figure(table.assign(per_epoch=np.nan))
    assert unknown.axes
    assert not any(ax.child_axes for ax in unknown.axes)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["layer-map", "signals"])
def test_dense_figures_mark_the_end_of_the_warmup_and_name_it_in_the_legend(
    grid_runs: Diagnoses, name: str
) -> None:
    table = PLOTS[name].table(grid_runs)
    table = table[table["run"].isin(table["run"].unique()[:2])]
    (warmup,) = {run.settings["optim.warmup_steps"] for run in grid_runs}

    def marked(figure: Figure) -> list[bool]:
        """Return for each panel whether a line stands at the end of the warm-up."""
        panels = [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]
        return [any(list(line.get_xdata()) == [warmup] * 2 for line in ax.lines) for ax in panels]

    figure = PLOTS[name].figure(table)
    assert marked(figure)
    assert all(marked(figure))
    assert words(figure).count("warm-up ends") == 1
    for without in (np.nan, 0, table["step"].max()):
        figure = PLOTS[name].figure(table.assign(warmup=without))
        assert not any(marked(figure))
        assert "warm-up ends" not in words(figure)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("name", "seeds", "none"),
    [
        ("grad-norms", "the first of 2 seeds", "the first of 2 runs"),
        ("knn", "n = 2 seeds", "2 runs"),
        ("loss", "n = 2 seeds", "2 runs"),
        ("optimizer", "n = 2 seeds, shaded", "2 runs, shaded"),
        ("layer-map", "n = 1: the first run", "n = 1: the first run"),
    ],
)
def test_a_figure_says_of_how_many_runs_it_is_and_names_seeds_only_if_known(
    two_optimizers: Diagnoses, name: str, seeds: str, none: str
) -> None:
    table = PLOTS[name].table(two_optimizers)
    assert seeds in words(PLOTS[name].figure(table))
    unknown = table.assign(seed=None) if "seed" in table else table
    assert none in words(PLOTS[name].figure(unknown))


def words(figure: Figure) -> str:
    """Return what stands below and beside the panels of a figure."""
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "; ".join([figure.get_supxlabel(), *legends])


Drawn = tuple[str, pd.DataFrame, Figure]


@pytest.fixture(scope="module", params=[name for name in PLOTS if name != "optimizer"])
def drawn(request: pytest.FixtureRequest, grid_runs: Diagnoses) -> Drawn:
    """Return a figure of the grid with its name and table, drawn once for the tests of it."""
    table = table_of(request.param, grid_runs)
    return request.param, table, PLOTS[request.param].figure(table)


@pytest.mark.lengthy
def test_the_csv_alone_draws_the_same_figure(drawn: Drawn, tmp_path: Path) -> None:
    """Two of them are written as pictures too; every other is for the test of a lonely run."""
    name, table, first = drawn
    csv = tmp_path / "out put" / f"{name}.csv"
    if name in ("knn", "layer-map"):
        png, pdf, csv = save(first, table, csv.with_suffix(""))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert pdf.read_bytes().startswith(b"%PDF")
    else:
        csv.parent.mkdir()
        write_csv(table, csv)
    again = PLOTS[name].figure(pd.read_csv(csv))
    for left, right in zip(again.axes, first.axes, strict=True):
        assert left.get_title() == right.get_title()
        assert left.get_ylabel() == right.get_ylabel()
        for one, other in zip(left.lines, right.lines, strict=True):
            # text of a float32 is exact to half a unit in its last place
            np.testing.assert_allclose(one.get_xydata(), other.get_xydata(), rtol=2**-23)
            assert one.get_color() == other.get_color()


# what a plot of a contrast answers when there is none
CONTRASTS = {
    "freeze-patch": "these runs do not vary model.freeze_patch_embed",
    "lr-sensitivity": "these runs do not vary optim.lr",
    "stability-map": "a map needs two settings that vary",
}


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Diagnoses:
    return diagnosed(plant_run(tmp_path_factory.mktemp("lonely") / "only", dip=0.08, spike=True))


@pytest.mark.lengthy
@pytest.mark.parametrize("name", [n for n in PLOTS if n not in {*CONTRASTS, "optimizer"}])
def test_one_lonely_run_can_be_drawn(lonely: Diagnoses, tmp_path: Path, name: str) -> None:
    written = draw(name, lonely, tmp_path / "figures")
    assert {path.suffix for path in written} >= {".png", ".pdf", ".csv"}
    assert pd.read_csv(tmp_path / f"figures/{name}.csv").size, "the table drawn is not empty"


@pytest.mark.parametrize("name", CONTRASTS)
def test_a_contrast_that_is_not_there_is_refused_in_words(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_run(tmp_path / "only")
    assert main(["analyze", str(tmp_path), "--plot", name]) == 1
    said = capsys.readouterr().err
    assert CONTRASTS[name] in said
    assert "no setting but the seed varies" in said
    assert not (tmp_path / "figures").exists()


def test_a_figure_that_compares_optimizers_needs_several(tmp_path: Path) -> None:
    plant_run(tmp_path / "only")
    with pytest.raises(ValueError, match="all runs use the optimizer adamw"):
        table_of("optimizer", diagnosed(tmp_path))


def test_colors_are_told_apart_in_grey() -> None:
    """Lightness alone orders the ramp (Rec. 709 luma), so a gray print keeps the order."""
    for count in (2, 3, 6, 14):
        gray = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in ramp(count)]
        assert np.diff(gray).min() > 0.02


@pytest.mark.parametrize("name", PLOTS)
def test_runs_with_nothing_to_draw_are_refused_in_words(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    assert main(["analyze", str(tmp_path), "--plot", name]) == 1
    assert f"these runs hold nothing to draw for {name}" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_settings_that_only_go_along_name_no_panel(tmp_path: Path) -> None:
    """A batch with its own steps and warm-up is one factor, not three."""
    for batch, steps, freeze in [(8, 24, "true"), (16, 12, "true"), (8, 24, "false")]:
        plant_run(
            tmp_path / f"{batch} {freeze}",
            *(f"train.batch={batch}", f"train.steps={steps}", f"optim.warmup_steps={steps // 6}"),
            f"model.freeze_patch_embed={freeze}",
        )
    cells = group_cells(diagnosed(tmp_path))
    assert {tuple(cell.settings) for cell in cells} == {("model.freeze_patch_embed", "train.batch")}
    assert len(cells) == 3


@pytest.mark.lengthy
def test_lines_of_one_legend_differ_in_gray(drawn: Drawn) -> None:
    check_gray(drawn[2])


@pytest.mark.lengthy
def test_lines_of_the_legend_of_optimizers_differ_in_gray(two_optimizers: Diagnoses) -> None:
    check_gray(PLOTS["optimizer"].figure(PLOTS["optimizer"].table(two_optimizers)))


def check_gray(figure: Figure) -> None:
    """Check that two lines printed without color differ in dashes or marks, or in lightness."""
    handles = [handle for legend in figure.legends for handle in legend.legend_handles]
    looks = [_in_gray(handle) for handle in handles if isinstance(handle, Line2D)]
    for (form, light), (other, lighter) in itertools.combinations(looks, 2):
        assert form != other or abs(light - lighter) >= 0.2


def _in_gray(line: Line2D) -> tuple[tuple[object, ...], float]:
    """Return the form of a line, and how light it looks: a thin one is pale."""
    light = float(np.dot([0.3, 0.59, 0.11], mpl.colors.to_rgb(line.get_color())))
    width = line.get_linewidth()
    marker = (line.get_marker(), line.get_markerfacecolor() == "white")
    form = (line.get_linestyle(), line._unscaled_dash_pattern, *marker, width > 3)
    return form, 1 - (1 - light) * min(1.0, width)
