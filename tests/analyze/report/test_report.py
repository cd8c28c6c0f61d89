"""What the report says is what the runs hold; `test_report_page` opens it in a browser."""

import re
from pathlib import Path

import numpy as np
import pytest

import stabkit
import stabkit.cli.report
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.plots import PLOTS
from stabkit.analyze.report import contents as report_module
from stabkit.analyze.report import figures
from stabkit.analyze.report import page as page_module
from stabkit.analyze.report.contents import Report, _run_rows, make_report
from stabkit.analyze.report.figures import draw_figures
from stabkit.analyze.report.headline import tell_verdict
from stabkit.analyze.report.interactive import MAX_POINTS, thin
from stabkit.analyze.report.page import FOLDER
from stabkit.analyze.report.pictures import Picture
from stabkit.analyze.summary import run_table, summary
from stabkit.analyze.verdict import worst_of
from stabkit.cli import main
from stabkit.rundir import RunDir, Status
from tests.analyze.conftest import (
    SPIKE,
    STEPS,
    diagnosed,
    diagnosed_run,
    level,
    plant_loop,
    plant_run,
)
from tests.conftest import SMALL


def test_the_verdict_counts_runs_points_and_steps(grid_runs: Diagnoses, whole_grid: Path) -> None:
    verdict = tell_verdict(grid_runs, run_table(grid_runs))
    assert verdict.headline == "Unstable: 2 of 8 runs"
    assert verdict.lines[0] == (
        "2 dipped or drifted. All of these finished without any error, as if nothing had happened."
    )
    found = {run.name: run.accuracy.dips for run in grid_runs}
    deepest = max((d["depth"].max(), name) for name, d in found.items() if len(d))[1]
    seed = deepest[-1]  # the runs that differ from it in one setting
    alike = [f"lr 0.001 false {seed}", f"lr 0.02 true {seed}"]
    loss = max(level(diagnosed_run(whole_grid / name)) for name in alike)
    loss -= level(diagnosed_run(whole_grid / deepest))
    worst = found[deepest]
    lost = int((worst["end"] - worst["onset"]).sum())
    assert f"{loss:.1f} points below the stable run most like it" in verdict.lines[1]
    assert f"{lost} of its {STEPS} steps were spent in dips" in verdict.lines[1]
    assert f"the deepest {100 * worst['depth'].max():.1f} points" in verdict.lines[1]
    total = sum(int((d["end"] - d["onset"]).sum()) for d in found.values())
    share = f"{total / (8 * STEPS):.0%}"
    assert verdict.lines[2] == f"Dips took {total:,} of all {8 * STEPS:,} steps ({share})."


@pytest.mark.lengthy
@pytest.mark.usefixtures("undrawn")
def test_the_verdict_and_the_table_give_one_level(grid_runs: Diagnoses) -> None:
    """Not the median of the last fifth here and the last evaluation there."""
    report = make_report(grid_runs)
    worst = str(worst_of(run_table(grid_runs))["run"])
    (row,) = (
        dict(zip(report.runs.head, r, strict=True)) for r in report.runs.rows if r[-1] == worst
    )
    assert f"It ended at {row['final kNN, %']} %" in report.verdict.lines[1]
    assert f"{level(diagnosed_run(grid_runs.path / worst)):.1f}" == row["final kNN, %"]
    assert f" {level(diagnosed_run(grid_runs.path / worst)):.1f} " in summary(grid_runs)


@pytest.mark.lengthy
@pytest.mark.usefixtures("undrawn")
def test_a_run_that_went_nonfinite_is_worse_than_the_deepest_dip(grid: Path) -> None:
    RunDir(grid / "lr 0.001 true 1").append_entry("nonfinite", 7, layers=["head"])
    runs = diagnosed(grid)
    assert worst_of(run_table(runs))["run"] == "lr 0.001 true 1"
    event, _ = make_report(runs).incidents[0]
    assert event.kind == "nonfinite"
    assert ("In", "head") in event.facts


@pytest.mark.parametrize(
    ("spike", "mood", "headline"),
    [
        (False, "good", "No sign of instability in 1 run"),
        (True, "warn", "Gradients burst in 1 run, and accuracy does not show it"),
    ],
)
def test_runs_without_a_dip_are_not_called_unstable(
    tmp_path: Path, spike: bool, mood: str, headline: str
) -> None:
    plant_run(tmp_path / "a", spike=spike)
    runs = diagnosed(tmp_path)
    verdict = tell_verdict(runs, run_table(runs))
    assert (verdict.mood, verdict.headline) == (mood, headline)


def test_runs_under_way_and_runs_without_anything_to_judge_are_told(tmp_path: Path) -> None:
    for part in plant_run(tmp_path / "a").rglob("*.parquet"):
        part.unlink()
    RunDir(tmp_path / "a").write_status(Status("preempted", 100, STEPS))
    runs = diagnosed(tmp_path)
    verdict = tell_verdict(runs, run_table(runs))
    assert (verdict.mood, verdict.headline) == ("unknown", "Cannot be said")
    assert "1 preempted" in verdict.lines[0]
    assert "Nothing can be said" in verdict.lines[1]


@pytest.mark.usefixtures("undrawn")
def test_every_event_is_told_the_deepest_first_and_those_left_out_are_counted(
    grid_runs: Diagnoses, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = grid_runs
    depths = sorted((d for run in runs for d in run.accuracy.dips["depth"]), reverse=True)
    ratios = sorted((r for run in runs for r in run.gradients.bursts["ratio"]), reverse=True)
    monkeypatch.setattr(report_module, "ZOOMS", 1)
    monkeypatch.setattr(report_module, "LISTED", 2)
    report = make_report(runs)
    (first, zoom), *others = report.incidents
    assert not others
    assert first.size == depths[0]
    assert zoom is not None
    assert first.headline in zoom.alt
    assert report.further is not None
    kinds = [row[0].split()[0] for row in report.further.rows]
    assert kinds == ["Dip", "Gradient"]
    assert report.unlisted == len(depths) + len(ratios) - 3
    assert f"{ratios[0]:.1f} times" in report.further.rows[1][0]
    assert report.further.rows[1][2] == str(SPIKE)


@pytest.mark.lengthy
@pytest.mark.usefixtures("undrawn")
def test_settings_are_those_that_differ_and_those_that_do_not(grid_runs: Diagnoses) -> None:
    report = make_report(grid_runs)
    assert report.factors is not None
    assert report.factors.head[1:] == ("seed", "model.freeze_patch_embed", "optim.lr")
    rows = {row[0]: row[1:] for row in report.factors.rows}
    assert rows["lr 0.02 true 1"] == ("1", "true", "0.02")
    shared = dict(report.shared)
    assert shared["train.batch"] == "8"
    assert not set(shared) & {"seed", "optim.lr"}


def test_a_line_is_thinned_to_its_extremes() -> None:
    rng = np.random.default_rng(0)
    step, value = np.arange(100_000), rng.normal(size=100_000)
    value[[10, 70_000]] = [50, -50]
    value[500:600] = np.nan
    few, kept = thin(step, value)
    assert len(few) <= MAX_POINTS
    assert np.all(np.diff(few) > 0)
    assert np.array_equal(value[few], kept, equal_nan=True)
    assert {10, 70_000} <= set(few)
    assert np.isnan(kept).any(), "a gap stays a gap"
    for i in range(0, len(step), 5000):  # at any zoom the envelope is the series' own
        inside = (few >= i) & (few < i + 5000)
        assert np.nanmax(kept[inside]) == np.nanmax(value[i : i + 5000])
        assert np.nanmin(kept[inside]) == np.nanmin(value[i : i + 5000])
    short, same = thin(step[:100], value[:100])
    assert (len(short), len(same)) == (100, 100)


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = color.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_every_color_of_text_stands_out() -> None:
    """WCAG AA: 4.5 to 1 on the page and on a panel, in light, dark and print."""
    style = (FOLDER / "report.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w+)", block))
               for block in re.findall(r":root \{[^}]*\}", style)]  # fmt: skip
    assert len(schemes) == 3
    checked = 0
    for own in schemes:
        scheme = schemes[0] | own
        for name in ("text", "soft", "link", "bad", "warn", "good", "unknown"):
            for back in ("back", "panel"):
                one, other = luminance(scheme[name]), luminance(scheme[back])
                ratio = (max(one, other) + 0.05) / (min(one, other) + 0.05)
                assert ratio >= 4.5, (name, back, ratio)
                checked += 1
    assert checked == 42


@pytest.fixture(scope="module")
def made() -> list[Report]:
    return []


@pytest.fixture
def drawn_once(made: list[Report], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the report once; every command that asks for it afterwards renders and writes it."""

    def make_once(runs: Diagnoses) -> Report:
        if not made:
            made.append(make_report(runs))
        assert made[0].folder == str(runs.path)
        return made[0]

    monkeypatch.setattr(page_module, "make_report", make_once)


@pytest.mark.lengthy
@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("how", ["folder", "study", "file"])
def test_the_command_takes_a_folder_a_study_or_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plant_run(tmp_path / "runs" / "mine" / "a", dip=0.08)
    sets = "\n".join(f"  {pair.replace('=', ': ')}" for pair in SMALL)
    (tmp_path / "other.yaml").write_text(f"name: mine\nbase: tiny\nset:\n{sets}\n")
    word = {"folder": "runs/mine", "study": "mine", "file": "other.yaml"}[how]
    assert main(["report", word]) == 0
    out = tmp_path / "runs" / "mine" / "report.html"
    assert capsys.readouterr().out.strip() == str(out.relative_to(tmp_path))
    page = out.read_text()
    assert ">Unstable</h2>" in page
    figures = set(re.findall(r"stabkit analyze runs/mine --plot ([a-z-]+)", page))
    assert figures >= {"knn", "grad-norms"}
    tables = {"accuracy-table"}
    assert page.count("<img") == len(figures - tables) + 1, "the dip has its zoom"
    assert page.count("unsafe") == 0
    assert len(page) < 3e6 / 6
    assert [p.name for p in out.parent.iterdir() if p.is_file()] == ["report.html"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such folder, and no runs/nowhere"),
        (["x.yaml"], "x.yaml: its runs would be in runs/never; `stabkit sweep x.yaml` makes them"),
        (["empty"], "empty: no run folder in it or below it"),
        (["one", "-o", "away/report.html"], "there is no folder away to write it to"),
        (["one", "-o", "empty"], "empty: is a folder; name a file, e.g. empty/report.html"),
        (["one", "--interactive"], "pip install 'stabkit[interactive]'"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stabkit.cli.report, "find_spec", lambda name: None)  # as if without plotly
    monkeypatch.setattr(
        "stabkit.analyze.report.page.make_report", lambda runs: pytest.fail("works")
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "x.yaml").write_text("name: never\nbase: tiny\n")
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_holds_nothing_makes_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Cannot be said" in page
    assert "<img" not in page


def test_the_figure_of_a_norm_of_the_whole_model_names_no_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "picture", lambda figure, alt: Picture("data:,", 1, 1, alt))
    monkeypatch.setattr(figures, "PLOTS", {"grad-norms": PLOTS["grad-norms"]})
    norms = np.exp(0.1 * np.random.default_rng(0).normal(size=STEPS))
    plant_loop(tmp_path / "whole", gnorm=norms)
    plant_loop(tmp_path / "layers", ["a", "b", "c"])
    titles = {}
    for path in tmp_path.iterdir():
        runs = diagnosed(path)
        ((shown,), _) = draw_figures(runs, tell_verdict(runs, run_table(runs)), path.name)
        titles[path.name] = shown.title
        assert ("first layer" in shown.about) == (path.name == "layers")
    assert titles == {
        "whole": "Gradient norm of the whole model",
        "layers": "Gradients: the first layer above the last block",
    }


def test_a_seed_is_a_whole_number_where_another_run_has_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (plant_loop(tmp_path / name) / "config.yaml").write_text("kind: loop\nseed: 0\n")
    (tmp_path / "b" / "config.yaml").unlink()
    table = run_table(diagnosed(tmp_path))
    assert table["seed"].dtype == float
    rows = _run_rows(table, len(table))
    assert {row[rows.head.index("seed")] for row in rows.rows} == {"0", "-"}
