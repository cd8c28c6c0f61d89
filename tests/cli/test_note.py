"""A note on a run: kept apart from what a training writes, shown in words and in figures."""

import json
import math
import shutil
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.plots import PLOTS, figure_of
from stabkit.analyze.report.interactive import charts
from stabkit.analyze.summary import summary
from stabkit.cli import main
from stabkit.rundir import RunDir, Status
from stabkit.store.reader import load
from stabkit.store.writer import Writer
from tests.analyze.conftest import STEPS, plant_run
from tests.conftest import tree

TEXT = r"$lr$ halved [red] \x"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for i, rate in enumerate((0.001, 0.002)):
        plant_run(tmp_path / "runs" / str(i), f"optim.lr={rate}", spike=True, seed=i)
    return tmp_path / "runs"


def test_a_note_changes_nothing_else_also_while_the_run_trains(runs: Path) -> None:
    before = tree(runs / "0")
    with RunDir(runs / "0").lock():
        during = tree(runs / "0")
        assert main(["note", str(runs / "0"), "30", TEXT]) == 0
        after = tree(runs / "0")
    assert after.keys() - before.keys() == {"notes.jsonl", ".lock", "checkpoints"} & after.keys()
    changed = {name for name in during if name != "." and during[name] != after[name]}
    assert changed == set()
    (note,) = RunDir(runs / "0").read_notes()
    assert (note.step, note.text) == (30, TEXT)


def test_a_resume_trims_the_log_and_keeps_the_notes(runs: Path) -> None:
    rundir = RunDir(runs / "0")
    rundir.append_entry("nonfinite", 40)
    assert main(["note", str(runs / "0"), "40", TEXT]) == 0
    rundir.trim_entries(10)
    assert rundir.read_entries() == []
    assert [note.text for note in rundir.read_notes()] == [TEXT]


def test_notes_of_many_at_once_are_all_whole(runs: Path) -> None:
    rundir = RunDir(runs / "0")

    def write() -> None:
        for step in range(25):
            rundir.append_note(step, "x" * 400)

    threads = [Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = rundir.notes_file.read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 100
    assert [note.step for note in rundir.read_notes()] == sorted([*range(25)] * 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0", str(STEPS + 1), "x"], f"has the steps 0 to {STEPS}"),
        (["0", "3", " "], "a note needs a text"),
        (["0", "3", "x" * 501], "at most 500"),
        ([".", "3", "x"], "name a run in it"),
        (["nowhere", "3", "x"], "no such folder"),
    ],
)
def test_a_wrong_note_is_refused_and_nothing_written(
    words: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(runs)
    assert main(["note", str(runs / words[0]), *words[1:]]) == 2
    assert said in capsys.readouterr().err
    assert tree(runs) == before


def test_a_run_that_has_ended_has_no_later_steps(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Monitor does not know how many steps will come, but how many there were."""
    for state, code in (("running", 0), ("done", 2)):
        RunDir(runs / "0").write_status(Status(state, 600))
        assert main(["note", str(runs / "0"), "601", "x"]) == code
    assert "has the steps 0 to 600" in capsys.readouterr().err


def test_a_link_in_place_of_the_notes_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = runs.parent / "precious"
    target.write_text("mine")
    (runs / "0" / "notes.jsonl").symlink_to(target)
    assert main(["note", str(runs / "0"), "3", "x"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_notes_and_resumes_are_in_the_summary_as_they_were_written(runs: Path) -> None:
    RunDir(runs / "0").append_note(30, TEXT)
    RunDir(runs / "1").append_entry("resume", 50)
    text = summary(diagnose(load(runs)))
    assert [
        line.split() for line in text.splitlines() if "halved" in line or "resumed" in line
    ] == [
        ["30", "base", "lr", "0.001", *TEXT.split()],
        ["50", "base", "lr", "0.002", "resumed"],
    ]


def rates(run: Path, values: list[float]) -> list[tuple[int, str]]:
    """Return the notes of a run whose rate is the values from one step to the next."""
    shutil.rmtree(run / "scalars")
    writer = Writer(run, "planted again")
    writer.add_scalars(np.arange(len(values)), "lr", np.array(values))
    writer.flush()
    return [(note.step, note.text) for note in next(iter(diagnose(load(run)))).notes]


def test_a_jump_of_the_rate_is_noted_and_a_schedule_is_not(runs: Path) -> None:
    run = runs / "0"
    assert rates(run, [0.1] * 20 + [0.01] * 20) == [(20, "lr 0.1 to 0.01")]
    assert rates(run, [0.1] * 2 + [0.01] * 20) == [], "too early to tell"
    warm = [i / 30 for i in range(30)]
    cosine = [(1 + math.cos(math.pi * i / 99)) / 2 for i in range(100)]
    assert rates(run, [*warm, *cosine]) == []
    assert rates(run, [*cosine[:90], *cosine]) == [(90, "lr 0.025 to 1")], "a restart"
    assert rates(run, [0.5**i for i in range(40)]) == []
    assert rates(run, [*cosine[:97], 1e-8]) == [], "a cosine that has come to its end"
    assert rates(run, [*cosine[:50], *[1e-8] * 20, *cosine]) == [(70, "lr 1e-08 to 1")]
    assert rates(run, [0.1 * 0.5 ** (i // 10) for i in range(200)]) == [], "a schedule of steps"


def test_jumps_of_a_schedule_with_restarts_hide_no_other_note(runs: Path) -> None:
    for run in runs.iterdir():
        rates(run, [0.1 * 0.9 ** (i % 10) for i in range(60)])  # jumps five times
    RunDir(runs / "1").append_note(55, "lr of people")
    text = summary(diagnose(load(runs)))
    assert text.count(" to 0.1\n") == 4
    assert text.count("lr of people") == 1
    assert "\n... and 6 jumps of the learning rate more\n" in text


def test_a_branch_is_noted_where_it_begins(runs: Path) -> None:
    RunDir(runs / "0").append_entry("branch", parent="x", begin=40, change="optim.beta2=0.95")
    RunDir(runs / "1").append_entry("branch", parent="x", begin=40, change="")
    notes = [[(n.step, n.text) for n in run.notes] for run in diagnose(load(runs))]
    assert notes == [[(40, "branch: optim.beta2=0.95")], [(40, "branch: nothing changed")]]


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["knn", "loss", "grad-norms", "layer-map", "signals"])
def test_a_figure_shows_a_note_where_its_run_is_and_nowhere_else(name: str, runs: Path) -> None:
    RunDir(runs / "0").append_note(30, TEXT)
    RunDir(runs / "0").append_note(10 * STEPS, "later than any step that was recorded")
    found = diagnose(load(runs))
    table = PLOTS[name].table(found)
    assert not noted(PLOTS[name].figure(table)), "a table knows of no note"
    texts = noted(figure_of(name, found))
    assert texts
    assert all(text == TEXT or text.startswith("$lr$ halved [") for text, _ in texts)
    assert {step for _, step in texts} == {30}
    panels = {"knn": 1, "loss": 1, "layer-map": 1}
    assert len(texts) == panels.get(name, len(texts))
    RunDir(runs / "0").notes_file.unlink()
    RunDir(runs / "1").append_note(30, "of the other")
    other = noted(figure_of(name, diagnose(load(runs))))
    assert len(other) == len(texts)


@pytest.mark.lengthy
def test_labels_of_notes_beside_each_other_are_one_of_several_lines(runs: Path) -> None:
    for step, text in ((30, "first"), (32, "second"), (150, "third")):
        RunDir(runs / "0").append_note(step, text)
    labels = noted(figure_of("knn", diagnose(load(runs))))
    assert labels == [("first\nsecond", 32), ("third", 150)]


@pytest.mark.lengthy
def test_the_zoom_of_an_event_and_the_charts_show_notes_too(runs: Path) -> None:
    found = diagnose(load(runs))
    at = int(PLOTS["event-zoom"].table(found)["onset"].iloc[0]) + 5
    for run in runs.iterdir():
        RunDir(run).append_note(at, TEXT)
    found = diagnose(load(runs))
    zoomed = noted(figure_of("event-zoom", found))
    assert {step for _, step in zoomed} == {5}
    assert all(text.startswith("$lr$ halved") for text, _ in zoomed), "cut where a panel is low"
    drawn = [json.loads(chart.data)["layout"]["shapes"] for chart in charts(found)]
    assert all(any(s.get("x0") == at and "halved" in s["label"]["text"] for s in d) for d in drawn)


@pytest.mark.lengthy
def test_an_exact_resume_is_drawn_only_where_few_runs_share_a_panel(tmp_path: Path) -> None:
    for seed in range(4):
        run = RunDir(plant_run(tmp_path / str(seed), "optim.lr=0.001", seed=seed))
        run.append_entry("resume", 30)
    run.append_entry("resume", 50, changed=["threads"])
    of_one = noted(figure_of("knn", diagnose(load(tmp_path / "0"))))
    assert of_one == [("resumed", 30)]
    of_four = noted(figure_of("knn", diagnose(load(tmp_path))))
    assert [(text[:12], step) for text, step in of_four] == [("resumed, not", 50)]


def noted(figure: object) -> list[tuple[str, float]]:
    """Return text and step of every label of a note."""
    axes = figure.axes  # type: ignore[attr-defined]
    return [
        (text.get_text(), text.xy[0])
        for ax in axes
        for text in ax.texts
        if text.get_rotation() == 90 and not text.get_parse_math()
    ]


def test_damaged_notes_are_named_and_left_out(runs: Path) -> None:
    file = RunDir(runs / "0").notes_file
    RunDir(runs / "0").append_note(30, TEXT)
    with file.open("a") as notes:
        notes.write('{"step": "no number", "text": "x"}\n[1]\n{"torn')
    with pytest.warns(UserWarning, match="1 line left out"):
        assert [note.text for note in next(iter(load(runs))).notes()] == [TEXT]
