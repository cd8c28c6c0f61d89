"""A study of branches read from its folders: table, figures, and the report's section."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stabkit import load
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.report.page import write_report
from stabkit.branch.judge import measured
from stabkit.branch.judge.attribution import judge_branches
from stabkit.branch.judge.branch_figures import write_study
from stabkit.branch.judge.branch_table import (
    COLUMNS,
    branch_table,
    made_in,
    measured_table,
    read_plan,
)
from stabkit.branch.judge.measured import ParentEvent, level_before, measure
from stabkit.branch.judge.report_section import preventions
from stabkit.config import ConfigError
from stabkit.rundir import RunDir, Status
from stabkit.store import tables
from stabkit.store.reader import StoredRun
from tests.branch.judge.studies import BEGIN, DEPTH, END, HORIZON, LEVEL, ONSET, make_study, plant


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def table(study: Path) -> pd.DataFrame:
    return branch_table(study)


@pytest.mark.lengthy
def test_the_table_has_a_row_for_each_branch(table: pd.DataFrame) -> None:
    assert list(table) == list(COLUMNS)
    assert len(table) == 1 + 16 + 8 + 12
    events = table.groupby(["kind", "begin"])["event"].sum()
    assert events[("control", BEGIN)] == 1
    assert events[("placebo", BEGIN)] == 8
    assert events[("placebo", 90)] == 3
    assert not table["moved"].any()


def test_area_depth_and_level_are_those_that_were_planted(table: pd.DataFrame) -> None:
    dipped = table[table["event"] & (table["kind"] != "placebo")]
    # 8 evaluations, 5 steps apart, 15 points low; a little noise lies below the level as well
    assert dipped["area"].between(100 * DEPTH * 40, 100 * DEPTH * 40 * 1.15).all()
    assert dipped["depth"].between(100 * DEPTH - 1, 100 * DEPTH + 2).all()
    assert dipped["recovered"].all()
    assert (table["last"] - 100 * LEVEL).abs().max() < 5
    assert (table[~table["event"]]["area"] < 100).all()


def test_the_level_before_is_the_median_of_the_last_three_evaluations(tmp_path: Path) -> None:
    plant(tmp_path / "run", 1, dip=130)
    run = StoredRun(tmp_path / "run")
    low, high = 100 * (LEVEL - DEPTH), 100 * LEVEL
    for onset, level in ((135, high), (139, high), (140, low), (0, high)):
        assert level_before(run, "knn_heldout", onset) == pytest.approx(level, abs=5)
    with pytest.raises(ValueError, match="no evaluation of other up to the onset, step 9"):
        level_before(run, "other", 9)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("dip", "expected"),
    [(None, (False, False)), (125, (True, False)), (90, (False, False)), (230, (False, True))],
)
def test_a_fall_from_the_begin_on_that_goes_on_through_the_event_prevents_nothing(
    tmp_path: Path, dip: int | None, expected: tuple[bool, bool]
) -> None:
    """The dip of the parent is due at 150. One that was over at the begin is not the branch's."""
    plant(tmp_path / "parent", 1)
    plant(tmp_path / "branch", 2, first=0, dip=dip, last=HORIZON)
    event = ParentEvent("dip", ONSET, END)
    found = measure(
        StoredRun(tmp_path / "branch"),
        StoredRun(tmp_path / "parent"),
        "knn_heldout",
        event,
        BEGIN,
        HORIZON,
    )
    assert (found.event, found.moved) == expected


@pytest.mark.lengthy
def test_branches_that_have_not_ended_are_named(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    RunDir(study / "reset-3").write_status(Status("running", 200, HORIZON))
    table = branch_table(study)
    assert "reset-3" not in set(table["branch"])
    judged = judge_branches(table)
    assert "Left out, not finished: reset-3." in judged.text()
    assert judged.interventions["n"].tolist() == [5, 6]


@pytest.mark.lengthy
def test_an_event_at_another_time_is_moved(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    for i in range(6):
        folder = study / f"reset-{i}"
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()
        plant(folder, 30 + i, BEGIN, 220, last=HORIZON)
    judged = judge_branches(branch_table(study))
    assert judged.interventions["verdict"].iloc[0] == "postponed"


def test_a_plan_that_cannot_be_read_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"branches\.yaml"):
        read_plan(tmp_path)
    text = (study / "branches.yaml").read_text()
    for old, new, words in (
        ("kind: dip", "kind: drift", "'drift' is not judged in branches"),
        ("runs/parent", "runs/gone", "there is no folder runs/gone"),
        ("horizon: 300", "horizn: 300", "no plan of branches: 'horizon'"),
    ):
        assert old in text
        (tmp_path / "branches.yaml").write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=words):
            read_plan(tmp_path)


def test_the_parent_is_found_from_any_folder(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (study / "branches.yaml").read_text()
    for folder in ("runs", "sb/runs", "sb/deep/runs"):
        plant(tmp_path / folder / "parent", 1)
    monkeypatch.chdir(tmp_path)  # holds another run of that name
    for place, line, expected in (
        ("sb/branches", "", "sb/runs"),
        ("sb/deep/branches", "made_in: ../../..\n", "sb/runs"),
        ("sb/deep/others", "made_in: ../../gone\n", "sb/deep/runs"),
    ):
        (tmp_path / place / "one").mkdir(parents=True)
        (tmp_path / place / "one/branches.yaml").write_text(line + text)
        assert read_plan(Path(place, "one")).parent.path == tmp_path / expected / "parent"
    monkeypatch.chdir(tmp_path / "sb")
    assert made_in(Path("deep/branches/one")) == {"made_in": "../../.."}


@pytest.mark.lengthy
def test_figures_and_the_report_show_the_study(study: Path, table: pd.DataFrame) -> None:
    files = write_study(read_plan(study), table, judge_branches(table))
    assert {file.name for file in files} >= {"branches.png", "committor.png", "branches.csv"}
    assert all(file.stat().st_size for file in files)
    runs = diagnose(load(study.parents[1] / "runs"))
    (shown,) = preventions(runs)
    out = study.parent / "report.html"
    write_report(runs, out, preventions=[shown])
    page = out.read_text()
    assert "What would have prevented it" in page
    assert "change reset: prevented." in page
    assert "Committed between steps 90 and 130" in page
    write_report(runs, out)
    assert 'id="prevented"' not in out.read_text()


def test_the_accuracy_of_a_branch_is_read_once_and_searched_once(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    read, find = tables._read_parts, measured.find_dips

    def reading(folder: Path, *further: Any) -> Any:
        counts[str(folder)] += 1
        return read(folder, *further)

    def finding(*series: Any, **options: Any) -> pd.DataFrame:
        counts["find_dips"] += 1
        return find(*series, **options)

    monkeypatch.setattr(tables, "_read_parts", reading)
    monkeypatch.setattr(measured, "find_dips", finding)
    plan = read_plan(study)
    table = measured_table(plan)
    write_study(plan, table, judge_branches(table))
    assert counts.pop("find_dips") == len(table)
    assert set(counts.values()) == {1}


def test_a_report_of_other_runs_does_not_show_the_study(study: Path, tmp_path: Path) -> None:
    plant(study.parents[1] / "others/run", 5)
    assert preventions(diagnose(load(study.parents[1] / "others"))) == []
