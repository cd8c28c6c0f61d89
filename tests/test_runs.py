"""What `stabkit.load` returns: runs as a sequence, with what was found in them and figures."""

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import stabkit
from stabkit.analyze import kept_tables
from stabkit.analyze.found import EVENT_COLUMNS
from stabkit.cli import main
from stabkit.rundir import RunDir, Status
from stabkit.store import tables
from stabkit.store.writer import Writer
from tests.analyze.conftest import DIP, SPIKE, plant_run

FINDINGS = ["dips", "possible_dips", "drifts", "spikes", "bursts", "swells", "collapses", "events"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs at two learning rates, of which the second dips after a spike."""
    folder = tmp_path_factory.mktemp("runs")
    plant_run(folder / "calm", "optim.lr=0.001", seed=0)
    plant_run(folder / "dipping", "optim.lr=0.04", dip=0.2, spike=True, seed=1)
    return folder


@pytest.fixture
def runs(folder: Path) -> stabkit.Runs:
    return stabkit.load(folder)


def test_runs_are_a_sequence(runs: stabkit.Runs) -> None:
    assert [run.name for run in runs] == runs.names == ["calm", "dipping"]
    assert runs[0].name == "calm"
    assert runs[-1].name == runs[np.int64(1)].name == "dipping"
    assert runs["dipping"].path == runs[1].path
    assert isinstance(runs[:1], stabkit.Runs)
    assert runs[:1].names == ["calm"]
    assert runs[1] in runs
    with pytest.raises(KeyError, match=r"no run 'fast'.*calm, dipping"):
        runs["fast"]
    with pytest.raises(IndexError):
        runs[2]


def test_signals_are_chosen_as_those_of_a_run(runs: stabkit.Runs) -> None:
    found = runs.signals(["grad_norm"])
    assert list(found.columns) == ["run", *runs[0].signals("grad_norm").columns]
    assert len(found) == sum(len(run.signals()) for run in runs)


def test_summary_is_what_analyze_prints(
    runs: stabkit.Runs, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(folder)]) == 0
    assert capsys.readouterr().out.strip().startswith(runs.summary())
    assert runs[1].summary().splitlines()[0].startswith("The run trained unstably")


def test_where_chooses_by_settings(runs: stabkit.Runs) -> None:
    assert runs.where(lr=0.04).names == ["dipping"]
    assert runs.where({"optim.lr": 0.001}, seed=0).names == ["calm"]
    assert runs.where(lr=0.04, seed=0).names == []
    with pytest.raises(KeyError, match=r"no run has a setting 'rate'.*optim\.lr"):
        runs.where(rate=1)
    with pytest.raises(KeyError, match=r"'name' is the end of several settings: .*optim\.name"):
        runs.where(name="adamw")


def test_the_table_has_the_verdicts(runs: stabkit.Runs) -> None:
    table = runs.table().set_index("run")
    assert table["verdict"].to_dict() == {"calm": "stable", "dipping": "unstable"}
    assert table["dips"].to_dict() == {"calm": 0, "dipping": 1}
    assert table["deepest"]["dipping"] == pytest.approx(0.2, abs=0.02)
    assert table["bursts"].to_dict() == {"calm": 0, "dipping": 1}
    assert table["optim.lr"].tolist() == [0.001, 0.04]
    assert runs["dipping"].verdict == "unstable"


@pytest.mark.parametrize("name", FINDINGS)
def test_findings_of_many_runs_are_those_of_each_with_the_name_in_front(
    runs: stabkit.Runs, name: str
) -> None:
    whole = getattr(runs, name)()
    each = {run.name: getattr(run, name)() for run in runs}
    assert list(whole.columns) == ["run", *each["calm"].columns]
    for run, frame in each.items():
        part = whole[whole["run"] == run].drop(columns="run").reset_index(drop=True)
        assert len(part) == len(frame)
        if len(frame):
            pd.testing.assert_frame_equal(part, frame, check_dtype=False)


def test_events_are_what_was_found_and_the_log_what_happened(runs: stabkit.Runs) -> None:
    run = runs["dipping"]
    events = run.events()
    assert list(events.columns) == list(EVENT_COLUMNS)
    assert events["kind"].tolist() == ["burst", "dip"]
    burst, dip = events.to_dict("records")
    assert burst["onset"] == SPIKE
    assert burst["layer"] == "patch_embed"
    assert burst["size"] > 10
    assert np.isnan(burst["p"])
    assert abs(dip["onset"] - DIP[0]) <= 10
    assert dip["p"] < 1e-6
    assert run.events("spike")["layer"].tolist() == ["patch_embed", "blocks.0"]
    assert "dip" not in set(run.log().get("kind", []))
    with pytest.raises(ValueError, match="unknown kind of event 'dipp'; there are: dip"):
        run.events("dipp")


def test_what_is_returned_can_be_changed_without_changing_what_was_found(
    runs: stabkit.Runs,
) -> None:
    run = runs["dipping"]
    found = run.dips()
    found["depth"] = 0.0
    assert run.dips()["depth"].gt(0).all()


@pytest.mark.lengthy
def test_plots_are_figures(runs: stabkit.Runs) -> None:
    assert isinstance(runs.plot("knn"), Figure)
    figure, ax = plt.subplots()
    assert runs["dipping"].plot("knn", ax) is figure
    assert len(ax.lines) > 0
    assert ax.get_xlabel() == "step"
    assert ax.get_ylabel().startswith("held-out kNN accuracy, %")
    plt.close(figure)
    with pytest.raises(ValueError, match="'knnn' is no figure; there are: "):
        runs.plot("knnn")
    with pytest.raises(ValueError, match="grad-norms has several panels"):
        runs.plot("grad-norms", ax)


def test_short_in_a_notebook(runs: stabkit.Runs) -> None:
    assert repr(runs) == f"<2 runs in {str(runs.path)!r}: calm, dipping>"
    assert repr(runs[0]) == f"Run({str(runs[0].path)!r})"
    page = runs._repr_html_()
    assert "<table" in page
    assert "unstable" in page


def test_each_table_is_read_once_and_few_stay_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    parts = tables._read_parts

    def counted(folder: Path, *further: Any) -> Any:
        read[f"{folder.parent.name}/{folder.name}"] += 1
        return parts(folder, *further)

    monkeypatch.setattr(tables, "_read_parts", counted)
    monkeypatch.setattr(kept_tables.Tables.__init__, "__defaults__", (0,))  # bytes
    runs = stabkit.load(folder)
    runs.table()
    runs.dips()
    runs.dips("knn_heldout")
    assert len(read) == 6
    assert set(read.values()) == {1}
    runs[1].diagnosis().tables.scalars()
    runs[0].diagnosis().tables.scalars()
    assert read["calm/scalars"] == 2, "the tables of the first run were not kept"


def test_signals_of_many_runs_are_chosen_as_those_of_one(runs: stabkit.Runs) -> None:
    assert list(runs.signals("grad_norm")) == ["run", "step", "layer", "depth", "grad_norm"]
    assert len(runs.signals("grad_norm")) == sum(len(run.signals("grad_norm")) for run in runs)


def test_an_evaluation_that_was_not_recorded_is_refused(runs: stabkit.Runs) -> None:
    with pytest.raises(KeyError, match=r"no evaluation 'knn'.*were: knn_heldout"):
        runs[0].correct("knn")
    for name in ("dips", "possible_dips", "drifts", "evals"):
        for asked in (runs, runs[0]):
            with pytest.raises(KeyError, match=r"no evaluation 'knn'.*were: knn_heldout"):
                getattr(asked, name)("knn")


def test_a_run_that_lacks_an_evaluation_of_others_has_no_rows_of_it(tmp_path: Path) -> None:
    for seed, (name, metric) in enumerate((("a", "knn_heldout"), ("b", "linear"))):
        plant_run(tmp_path / name, seed=seed)
        for part in (tmp_path / name / "evals").iterdir():
            part.unlink()
        writer = Writer(tmp_path / name, "planted")
        for step in range(0, 200, 5):
            right = np.arange(100) < 30 + step / 10
            writer.add_eval(step, metric, float(right.mean()), 0.1, 0, 0.0, right)
        writer.flush()
    runs = stabkit.load(tmp_path)
    assert set(runs.evals("linear")["run"]) == {"b"}
    assert runs.dips("linear").empty, "the run a is searched for it, and has none"
    assert runs[0].diagnosis("linear").verdict


def test_a_killed_run_is_lost_as_in_the_summary(tmp_path: Path) -> None:
    RunDir(plant_run(tmp_path / "run")).write_status(Status("running", 300, 500))
    runs = stabkit.load(tmp_path)
    assert runs.table()["state"].tolist() == ["lost"]
    assert "1 lost" in runs.summary()


def test_a_folder_without_runs(tmp_path: Path) -> None:
    runs = stabkit.load(tmp_path)
    assert len(runs) == 0
    assert runs.table().empty
    assert runs.events().empty
    assert "none" in repr(runs)


def test_the_names_of_the_package_can_be_listed_and_loaded() -> None:
    assert {"Monitor", "load", "find_dips", "train_run", "RunBusyError"} <= set(dir(stabkit))
    for name in dir(stabkit):
        assert getattr(stabkit, name) is not None


@pytest.mark.lengthy
def test_a_training_from_python_is_that_of_the_command(tmp_path: Path) -> None:
    small = ["train.steps=2", "train.batch=8", "data.num_train=16", "data.num_heldout=16"]
    small += ["optim.warmup_steps=1", "runtime.device=cpu"]
    run = stabkit.train_run(stabkit.load_config("tiny", small), tmp_path / "here")
    assert run.status().state == "done"  # type: ignore[union-attr]
    assert main(["train", "tiny", "--run-dir", str(tmp_path / "there"), *small]) == 0
    there = stabkit.open_run(tmp_path / "there")
    pd.testing.assert_series_equal(run.scalar("loss"), there.scalar("loss"))
    with pytest.raises(stabkit.ForeignFolderError):
        stabkit.train_run(stabkit.load_config("tiny", [*small, "seed=9"]), tmp_path / "here")


def test_what_tab_and_help_show_can_be_read() -> None:
    """IPython completes `stabkit.` by `dir`, and shows a signature above the docstring."""
    assert {"find_dips", "load", "Monitor"} <= set(dir(stabkit))
    for name in dir(stabkit):
        if callable(found := getattr(stabkit, name)) and name.startswith("find_"):
            assert len(str(inspect.signature(found))) < 350, name
