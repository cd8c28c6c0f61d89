"""Rows that a run wrote and that went missing: train, status and analyze name them."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import stabkit
import stabkit.train.loop as loop
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.summary import describe, run_table
from stabkit.cli import main
from stabkit.rundir import LeftOutWarning, RunDir
from stabkit.store.gaps import gaps
from tests.conftest import SMALL, small_config
from tests.train.test_resume import at_call

CONFIG = small_config()  # 24 steps, parts of 3, checkpoints at every 7th, evaluations at every 5th
TABLES = ("layers", "scalars", "evals")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one run to its end and another to step 14."""
    folder = tmp_path_factory.mktemp("lost")
    loop.train(CONFIG, RunDir(folder / "done"))
    real = loop.train_step
    loop.train_step = at_call(real, 15, broken)  # type: ignore[assignment]
    try:
        with pytest.raises(RuntimeError, match="broken"):
            loop.train(small_config("seed=1"), RunDir(folder / "stopped"))
    finally:
        loop.train_step = real
    return folder


def broken(*_: object) -> None:
    raise RuntimeError("broken")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def holding(run: Path, table: str, step: int) -> Path:
    """Return the part of a table that has a row of the step."""
    for part in sorted((run / table).iterdir()):
        only = Path(shutil.copytree(run, run.parent / f".{part.stem}"))
        for other in (only / table).iterdir():
            if other.name != part.name:
                other.unlink()
        frame = getattr(stabkit.open_run(only), "signals" if table == "layers" else table)()
        shutil.rmtree(only)
        if step in set(frame["step"]):
            return part
    raise AssertionError(f"no part of {table} has step {step}")


def read_gaps(run: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        return gaps(stabkit.open_run(run))


def verdicts(folder: Path) -> tuple[dict[str, str], str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        runs = diagnose(stabkit.load(folder))
        table = run_table(runs)
        return dict(zip(table["run"], table["verdict"], strict=True)), describe(runs, table)


@pytest.mark.lengthy
def test_a_complete_run_has_no_gaps(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gaps(stabkit.open_run(folder / "done")) == []
        assert gaps(stabkit.open_run(folder / "stopped")) == []


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("table", "step", "lacks"),
    [
        ("layers", 0, "layers: steps 0 to "),
        ("layers", 10, "layers: steps 10 to "),
        ("layers", 23, "layers: steps 2"),
        ("scalars", 10, "scalars: steps 10 to "),
        ("evals", 10, "evals: step 10"),
        ("evals", 24, "evals: step 24"),
    ],
)
def test_a_part_that_is_gone_is_named_by_analyze(
    folder: Path, table: str, step: int, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "stopped")
    run = folder / "done"
    holding(run, table, step).unlink()
    (found,) = read_gaps(run)
    assert found.startswith(lacks)
    verdict, text = verdicts(folder)
    assert verdict == {"done": "unknown"}
    assert found in text
    assert main(["analyze", str(folder), "--csv", str(folder / "all.csv")]) == 0
    _, err = capsys.readouterr()
    assert f"stabkit: {run / table}: no rows of " in err
    assert found in (folder / "all.csv").read_text()


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_gone_is_named(folder: Path, table: str) -> None:
    shutil.rmtree(folder / "done" / table)
    (found,) = read_gaps(folder / "done")
    assert found.startswith(f"{table}: steps 0 to {20 if table == 'evals' else 23}")


@pytest.mark.lengthy
@pytest.mark.parametrize("table", TABLES)
def test_a_part_deleted_before_a_resume_is_named_to_the_end(
    folder: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "stopped"
    holding(run, table, 5).unlink()
    words = ["train", "tiny", *SMALL, "seed=1", "--run-dir", str(run)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert f"stabkit: {run / table}: no rows of step" in err
    assert f"rows are missing: {table}: step" in out
    named = [e for e in RunDir(run).read_entries() if e["kind"] == "rows_missing"]
    assert [e["step"] for e in named] == [14]
    assert named[0]["gaps"][0].startswith(f"{table}: step")
    assert main(["status", str(folder)]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "stopped" in x)
    assert f"(rows are missing: {table}: step" in line
    assert verdicts(folder)[0]["stopped"] == "unknown"


@pytest.mark.lengthy
@pytest.mark.parametrize("table", TABLES)
def test_a_table_emptied_while_the_run_trains_is_named_at_its_end(
    folder: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "new"
    step = loop.train_step

    def emptying(*arguments: object) -> None:
        for part in (run / table).glob("part-*"):
            part.unlink()
        step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", at_call(step, 12, emptying))
    with pytest.warns(LeftOutWarning, match=f"{table}: no rows of steps 0 to"):
        status = loop.train(CONFIG, RunDir(run))
    assert status.state == "done"
    assert status.reason is not None
    assert status.reason.startswith(f"rows are missing: {table}: steps 0 to")
    assert RunDir(run).read_status() is not None
    assert [e["kind"] for e in RunDir(run).read_entries()][-2:] == ["rows_missing", "done"]


def test_a_run_that_trains_is_judged_by_what_it_has_written(folder: Path) -> None:
    """A flush writes one part after the other, so missing last rows of one table are no gap."""
    run = folder / "stopped"
    RunDir(run).write_status(stabkit.rundir.Status("running", 20, 24))
    holding(run, "scalars", 13).unlink()
    assert read_gaps(run) == []


def monitored(folder: Path, change: Callable[[Path], object]) -> Path:
    """Write the same rows into a Monitor's folder: no configuration, no attempts."""
    run = folder / "done"
    for name in ("config.yaml", "meta.json"):
        (run / name).unlink()
    change(run)
    return run


@pytest.mark.lengthy
@pytest.mark.parametrize("table", ["layers", "scalars"])
def test_a_monitors_folder_holds_every_step_between_its_first_and_last(
    folder: Path, table: str
) -> None:
    run = monitored(folder, lambda run: holding(run, table, 10).unlink())
    (found,) = read_gaps(run)
    assert found.startswith(f"{table}: steps 10 to")
    assert verdicts(folder)[0]["done"] == "unknown"


@pytest.mark.parametrize("table", ["layers", "scalars"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_table_of_a_monitor_that_begins_later_than_the_other_has_lost_rows(
    folder: Path, table: str, whole: bool
) -> None:
    def lose(run: Path) -> None:
        if whole:
            shutil.rmtree(run / table)
        else:
            holding(run, table, 0).unlink()

    (found,) = read_gaps(monitored(folder, lose))
    assert found.startswith(f"{table}: steps 0 to")
    assert found.endswith(" 23") == whole
    assert verdicts(folder)[0]["done"] == "unknown"


@pytest.mark.parametrize("state", ["done", "preempted", "running"])
def test_a_monitors_folder_holds_the_last_steps_once_it_has_ended(folder: Path, state: str) -> None:
    run = monitored(folder, lambda run: holding(run, "layers", 23).unlink())
    RunDir(run).write_status(stabkit.rundir.Status(state, 24, 24))
    found = read_gaps(run)
    assert [text.split(":")[0] for text in found] == ["layers"] * (state != "running"), found


def test_steps_before_a_monitor_began_are_no_gap(folder: Path) -> None:
    """Begin to record late, and evaluate now and then."""
    run = monitored(
        folder, lambda run: [holding(run, t, 0).unlink() for t in ("layers", "scalars", "evals")]
    )
    holding(run, "evals", 10).unlink()
    assert read_gaps(run) == []


def test_a_converted_log_may_be_sparse(folder: Path) -> None:
    run = monitored(folder, lambda run: holding(run, "layers", 10).unlink())
    RunDir(run).write_meta({"converted": {"source": "a.csv"}})
    assert read_gaps(run) == []


def status_line_of(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if name in x)
    return line


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("which", ["first", "middle", "last", "all"])
def test_status_names_what_was_deleted_after_the_run_was_done(
    folder: Path, table: str, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = sorted((folder / "done" / table).iterdir())
    if which == "all":
        shutil.rmtree(folder / "done" / table)
    else:
        {"first": parts[0], "middle": parts[len(parts) // 2], "last": parts[-1]}[which].unlink()
    (found,) = read_gaps(folder / "done")
    assert f"(rows are missing: {found})" in status_line_of(folder, "done", capsys)
    assert main(["status", str(folder), "--json"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["done"]["missing"] == [found]
    assert rows["stopped"]["missing"] == []


@pytest.mark.lengthy
def test_status_says_once_what_the_run_said_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "stopped"
    holding(run, "layers", 5).unlink()
    assert main(["train", "tiny", *SMALL, "seed=1", "--run-dir", str(run)]) == 0
    holding(run, "evals", 20).unlink()
    line = status_line_of(folder, "stopped", capsys)
    assert line.count("rows are missing") == 1
    assert line.count("layers: step") == line.count("evals: step") == 1


def test_status_reads_no_table_of_a_whole_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stabkit.store.tables.read_table", broken)
    monkeypatch.setattr("stabkit.store.reader.read_table", broken)
    assert "missing" not in status_line_of(folder, "done", capsys)
    assert "missing" not in status_line_of(folder, "stopped", capsys)


@pytest.mark.parametrize("which", ["first", "all"])
def test_status_notices_gaps_of_older_runs_that_did_not_count_their_parts(
    folder: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "done"
    content = json.loads((run / "status.json").read_text())
    del content["parts"]
    (run / "status.json").write_text(json.dumps(content))
    assert "missing" not in status_line_of(folder, "done", capsys)
    parts = sorted((run / "layers").iterdir())
    for part in parts if which == "all" else parts[:1]:
        part.unlink()
    assert "(rows are missing: layers: steps 0 to" in status_line_of(folder, "done", capsys)


def test_status_says_when_it_cannot_tell_which_rows_are_missing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "done"
    holding(run, "evals", 10).unlink()
    (run / "config.yaml").write_text("{")
    line = status_line_of(folder, "done", capsys)
    assert "(rows are missing: parts of evals; which steps they held is not known (" in line
    assert "config.yaml" in line
