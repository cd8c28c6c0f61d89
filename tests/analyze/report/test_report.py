"""What the report says is what the runs hold; `test_report_page` opens it in a browser."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import stabkit
import stabkit.cli.report
from stabkit.analyze.cells import group_cells
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.report import contents as report_module
from stabkit.analyze.report import page as page_module
from stabkit.analyze.report.contents import Report, make_report
from stabkit.analyze.report.interactive import MAX_POINTS, thin
from stabkit.analyze.report.page import FOLDER
from stabkit.analyze.report.remedies import NO_HELP, REMEDIES, SOURCES
from stabkit.analyze.report.remedy_effects import advise, trial
from stabkit.analyze.report.verdict_words import tell_verdict
from stabkit.analyze.summary import run_table
from stabkit.analyze.verdict import worst_of
from stabkit.cli import main
from stabkit.config import RunConfig, keys_of, load_config
from stabkit.rundir import RunDir, Status
from stabkit.store.writer import Writer
from tests.analyze.conftest import EVERY, SAMPLES, SPIKE, STEPS, diagnosed, diagnosed_run, plant_run
from tests.conftest import SMALL

BY_NAME = {remedy.name: remedy for remedy in REMEDIES}
LEARNED = ("false", "true")  # how the runs of `grid` are called
FREEZE, LOWER = BY_NAME["Freeze the patch projection"], BY_NAME["Lower the learning rate"]


def level(run: Diagnosis) -> float:
    """In points: the median of the last fifth of the evaluations, by hand."""
    values = run.evals("knn_heldout")["value"].to_numpy()
    return 100 * float(np.median(values[-round(len(values) / 5) :]))


def test_the_verdict_counts_runs_points_and_steps(grid: Path) -> None:
    runs = diagnosed(grid)
    verdict = tell_verdict(runs, run_table(runs))
    assert verdict.headline == "Unstable: 2 of 8 runs"
    assert verdict.lines[0] == (
        "2 dipped or sagged. All of these finished without any error, as if nothing had happened."
    )
    found = {run.name: run.dips for run in runs}
    deepest = max((d["depth"].max(), name) for name, d in found.items() if len(d))[1]
    seed = deepest[-1]  # the runs that differ from it in one setting
    alike = [f"lr 0.001 false {seed}", f"lr 0.02 true {seed}"]
    loss = max(level(diagnosed_run(grid / name)) for name in alike)
    loss -= level(diagnosed_run(grid / deepest))
    worst = found[deepest]
    lost = int((worst["end"] - worst["onset"]).sum())
    assert f"{loss:.1f} points below the stable run most like it" in verdict.lines[1]
    assert f"{lost} of its {STEPS} steps were spent in dips" in verdict.lines[1]
    assert f"the deepest {100 * worst['depth'].max():.1f} points" in verdict.lines[1]
    total = sum(int((d["end"] - d["onset"]).sum()) for d in found.values())
    share = f"{total / (8 * STEPS):.0%}"
    assert verdict.lines[2] == f"Dips took {total:,} of all {8 * STEPS:,} steps ({share})."


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_went_nonfinite_is_worse_than_the_deepest_dip(grid: Path) -> None:
    RunDir(grid / "lr 0.001 true 1").append_event("nonfinite", 7, layers=["norm"])
    runs = diagnosed(grid)
    assert worst_of(run_table(runs))["run"] == "lr 0.001 true 1"
    event, _ = make_report(runs).incidents[0]
    assert event.kind == "non-finite"
    assert ("Layers then", "norm") in event.facts


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


def test_runs_under_way_and_runs_without_accuracy_are_told(tmp_path: Path) -> None:
    for part in (plant_run(tmp_path / "a") / "evals").iterdir():
        part.unlink()
    RunDir(tmp_path / "a").write_status(Status("preempted", 100, STEPS))
    runs = diagnosed(tmp_path)
    verdict = tell_verdict(runs, run_table(runs))
    assert (verdict.mood, verdict.headline) == ("unknown", "Cannot be said")
    assert "1 preempted" in verdict.lines[0]
    assert "1 run cannot be judged" in verdict.lines[1]


@pytest.mark.usefixtures("undrawn")
def test_every_event_is_told_the_deepest_first_and_those_left_out_are_counted(
    grid_runs: Diagnoses, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = grid_runs
    depths = sorted((d for run in runs for d in run.dips["depth"]), reverse=True)
    ratios = sorted((r for run in runs for r in run.bursts["ratio"]), reverse=True)
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


def test_every_remedy_is_whole_and_can_be_tried(tmp_path: Path) -> None:
    """For and against, from sources that exist, with settings that a run takes."""
    known = keys_of(RunConfig)
    cited = {NO_HELP.source}
    for remedy in REMEDIES:
        assert remedy.supports, remedy.name
        assert remedy.opposes, remedy.name
        cited |= {item.source for item in (*remedy.supports, *remedy.opposes)}
        assert set(remedy.settings) <= set(known)
        assert remedy.answers
    assert cited - {""} == set(SOURCES)
    plant_run(tmp_path / "a", "method.head_norm=none", dip=0.08)
    runs = diagnosed(tmp_path)
    found = advise(runs, run_table(runs), {"dips": 1}, "a")
    assert {advice.remedy.name for advice in found} == set(BY_NAME)
    for advice in found:
        assert advice.command, f"{advice.remedy.name}: {advice.why_not}"
        program, verb, config, *settings = shlex.split(advice.command)
        assert (program, verb) == ("stabkit", "train")
        changed, before = load_config(config, settings), load_config(config)
        assert changed != before


def test_a_remedy_that_the_run_cannot_take_says_why(tmp_path: Path) -> None:
    plant_run(tmp_path / "a", "model.freeze_patch_embed=true", dip=0.08)
    runs = diagnosed(tmp_path)
    found = {a.remedy.name: a for a in advise(runs, run_table(runs), {"dips": 1}, "a")}
    frozen = found[FREEZE.name]
    assert (frozen.command, frozen.in_use) == (None, 1)
    assert FREEZE.name in list(found)[-2:], "what all runs have already comes last"
    clipped = found["Clip the patch projection at a small threshold"]
    assert clipped.command is None
    heads = found["BN in the heads"]  # of MoCo v3, where nothing else is set
    assert (heads.command, heads.in_use) == (None, 1)
    assert "nothing to clip" in clipped.why_not


def test_what_the_runs_measure_is_their_paired_difference(grid_runs: Diagnoses) -> None:
    runs = grid_runs
    table = run_table(runs)
    bad = set(table.loc[table["verdict"] == "unstable", "run"])
    levels = {run.name: level(run) for run in runs}
    for remedy, pairs in (
        (FREEZE, [(f"lr {x} false {s}", f"lr {x} true {s}") for x in (0.001, 0.02) for s in "01"]),
        (LOWER, [(f"lr 0.02 {x} {s}", f"lr 0.001 {x} {s}") for x in LEARNED for s in "01"]),
    ):
        found = trial(remedy, group_cells(runs), bad)
        assert found is not None
        assert len(found.pairs) == len(pairs)
        gains = [levels[after] - levels[before] for before, after in pairs]
        assert found.claim.effect == pytest.approx(np.mean(gains), abs=1e-9)
        assert sum(pair.unstable_without for pair in found.pairs) == 2
        assert sum(pair.unstable_with for pair in found.pairs) == 0
        assert "n = 4 pairs" in found.words()
        assert "Not decisive" in found.words()
    assert trial(BY_NAME["QK-norm"], group_cells(runs), bad) is None


def test_one_pair_is_never_decisive_and_three_alike_are(tmp_path: Path) -> None:
    for seed in range(3):
        for freeze, start in (("false", 0.25), ("true", 0.30)):
            folder = plant_run(tmp_path / f"{freeze} {seed}", f"model.freeze_patch_embed={freeze}",
                               seed=seed)  # fmt: skip
            evaluate_again(folder, start, seed)
    runs = diagnosed(tmp_path)
    found = trial(FREEZE, group_cells(runs), set())
    assert found is not None
    assert "Decisive: it ends higher here." in found.words()
    assert found.claim.effect == pytest.approx(5, abs=0.5)  # a jitter of 0.1 in each of six levels
    first = advise(runs, run_table(runs), {"dips": 1}, runs.items[0].name)[0]
    assert first.remedy is FREEZE, "what the runs decide for comes first"
    alone = trial(FREEZE, group_cells(Diagnoses(tmp_path, runs.items[::3])), set())
    assert alone is not None
    assert "n = 1 pair" in alone.words()
    assert "Not decisive: one pair cannot tell" in alone.words()


def evaluate_again(folder: Path, start: float, seed: int) -> None:
    """Accuracies that rise from `start` to .3 more, the same in every seed but for a jitter."""
    for part in (folder / "evals").iterdir():
        part.unlink()
    jitter = 0.001 * np.random.default_rng([seed, int(1000 * start)]).normal()
    writer = Writer(folder, "planted")
    for step in range(0, STEPS + 1, EVERY):
        correct = np.linspace(0, 1, SAMPLES) < start + jitter + 0.3 * step / STEPS
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()


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
    assert "Unstable: 1 of 1 run" in page
    figures = set(re.findall(r"stabkit analyze RUNS --plot ([a-z-]+)", page))
    assert figures >= {"knn", "grad-norms"}
    assert page.count("<img") == len(figures) + 1, "the dip has its zoom"
    assert page.count("unsafe") == 0
    assert len(page) < 3e6 / 6
    assert [p.name for p in out.parent.iterdir() if p.is_file()] == ["report.html"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such folder, and no runs/nowhere for a study"),
        (["x.yaml"], "x.yaml: no such folder, and no runs/never for a study; `stabkit sweep x"),
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
