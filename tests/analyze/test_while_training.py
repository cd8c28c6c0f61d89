"""Runs that train while they are analysed: one state of them is read, and it is a sound one."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stabkit
import stabkit.store.tables as tables
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.summary import describe, run_table
from stabkit.cli import main
from stabkit.rundir import LeftOutWarning, RunDir, Status
from stabkit.store.writer import Writer, trim
from tests.analyze.conftest import EVERY, SAMPLES, STEPS, diagnosed, plant_run

pytestmark = pytest.mark.processes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = plant_run(tmp_path / "runs" / "a", dip=0.08)
    RunDir(folder).write_status(Status("running", STEPS, 2 * STEPS))
    return folder


def written_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """From now on an evaluation is written after every reading of a part; returns how many."""
    read, count = tables._part, 0

    def reading(*arguments: object) -> object:
        nonlocal count
        found = read(*arguments)  # type: ignore[arg-type]
        count += 1
        writer = Writer(run, "planted")
        # all wrong: a fall that nobody could overlook
        wrong = np.zeros(SAMPLES, dtype=bool)
        writer.add_eval(STEPS + EVERY * count, "knn_heldout", 0.0, 0.1, 20, 0.07, wrong)
        writer.add_scalars(np.array([STEPS + EVERY * count]), "loss", np.array([1.0]))
        writer.flush()
        return found

    monkeypatch.setattr(tables, "_part", reading)
    return lambda: count


@pytest.mark.parametrize("find", ["dips", "drifts"])
def test_evaluations_and_their_bits_are_of_one_moment(
    run: Path,
    find: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = getattr(Diagnosis(stabkit.open_run(run)).accuracy, find)
    assert len(before) == (find == "dips")
    count = written_on(run, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = getattr(Diagnosis(stabkit.open_run(run)).accuracy, find)
    # evaluations and bits in one reading; for dips the learning rate as well, by then in two parts
    assert count() == (3 if find == "dips" else 1)
    pd.testing.assert_frame_equal(found, before)


def test_all_of_an_analysis_is_of_one_moment(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = stabkit.load(run.parent).as_of_now()
    first = diagnose(runs)
    table = run_table(first)
    before = describe(first, table)
    count = written_on(run, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = diagnose(runs)
        again = run_table(second)
        assert describe(second, again) == before
    pd.testing.assert_frame_equal(again, table)
    assert count() == 3, "each table is read once"
    later = run_table(diagnosed(run.parent))
    assert later["last"].iloc[0] == 0.0, "whoever asks anew sees what has been written"


@pytest.mark.usefixtures("undrawn")
def test_a_report_is_of_one_moment(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = stabkit.load(run.parent).as_of_now()
    before = make_report(diagnose(runs))
    written_on(run, monkeypatch)
    after = make_report(diagnose(runs))
    assert after.verdict == before.verdict
    assert after.runs == before.runs
    assert [e.headline for e, _ in after.incidents] == [e.headline for e, _ in before.incidents]


@pytest.mark.parametrize("verb", ["analyze", "report"])
def test_the_commands_read_one_moment(
    run: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = written_on(run, monkeypatch)
    assert main([verb, str(run.parent)]) == 0
    out, err = capsys.readouterr()
    assert count() >= 3
    assert err == ""
    if verb == "analyze":
        assert "The deepest dip" in out
        assert "0.000" not in out, "the evaluations that came later"


def test_parts_that_a_resumed_run_writes_anew_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on between the listing and the reading: parts are removed and come back."""
    writer = Writer(tmp_path, "abcd")
    for first in range(0, 12, 4):
        writer.add_scalars(np.arange(first, first + 4), "loss", np.arange(first, first + 4) / 7)
        writer.flush()
    listing, resumed = tables._parts, False

    def listed(folder: Path) -> list[Path]:
        nonlocal resumed
        found = listing(folder)
        if not resumed:
            resumed = True
            trim(tmp_path, 6)
        return found

    monkeypatch.setattr(tables, "_parts", listed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stabkit.open_run(tmp_path).scalar("loss").index.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_folder_that_is_moved_while_it_is_read_is_named(run: Path) -> None:
    runs = diagnosed(run.parent)
    shutil.move(run, run.parent.parent / "elsewhere")
    with pytest.warns(LeftOutWarning, match=f"{run}: left out, moved or deleted while it was read"):
        table = run_table(runs)
    assert table["verdict"].tolist() == ["unknown"]


def test_a_run_that_is_copied_is_read_as_far_as_it_came(run: Path) -> None:
    """A copy of a run that trains may have its status and the parts of different moments."""
    copy = Path(shutil.copytree(run, run.parent.parent / "copy"))
    status = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps(status | {"step": STEPS + 100}))
    (table,) = [run_table(diagnosed(copy))]
    assert table["dips"].tolist() == [1]
    assert table["gaps"].tolist() == [""]
