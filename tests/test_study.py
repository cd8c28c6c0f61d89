"""`open_study`: which runs it takes, from where, and what it says when there are none."""

import shutil
import sys
from pathlib import Path

import pytest

from stabkit import open_study
from stabkit.rundir import LeftOutWarning, RunDir, Status
from tests.analyze.conftest import plant_run

FACTORS = ["model.freeze_patch_embed"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "analysis" / "lr_grid.py")])


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    for freeze in ("false", "true"):
        plant_run(tmp_path / "runs" / freeze, f"model.freeze_patch_embed={freeze}")
    return tmp_path / "runs"


def test_a_run_that_is_there_twice_counts_once(arms: Path) -> None:
    shutil.copytree(arms / "true", arms / "true copy")
    with pytest.warns(LeftOutWarning, match="copy: left out, it has the settings and the seed of"):
        assert len(open_study("lr_grid", arms, FACTORS).runs) == 2


def test_runs_are_those_named_on_the_command_line(
    arms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [sys.argv[0], str(arms)])
    assert len(open_study("lr_grid", "nowhere", FACTORS).table) == 2
    monkeypatch.setattr(sys, "argv", [sys.argv[0], str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="no runs there; `stabkit sweep` makes them"):
        open_study("lr_grid", arms, FACTORS)


@pytest.mark.lengthy
def test_a_notebook_finds_runs_and_sweep_above_its_folder(
    arms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sweeps", "analysis"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "sweeps" / "lr_grid.yaml", tmp_path / "sweeps")
    monkeypatch.chdir(tmp_path / "analysis")
    monkeypatch.setattr(sys, "argv", ["/somewhere/ipykernel_launcher.py", "-f", "kernel-1.json"])
    study = open_study("lr_grid", "runs", FACTORS)
    assert set(study.table["run"]) == {"true", "false"}
    assert study.paper.name == "linear probe, top-1 %"
    monkeypatch.setattr(sys, "argv", ["lr_grid.py", "runs/json_try"])
    with pytest.raises(SystemExit, match="runs/json_try: no runs there"):
        open_study("lr_grid", "runs", FACTORS)
    monkeypatch.setattr(sys, "argv", ["/somewhere/ipykernel_launcher.py", "-f", "kernel-1.json"])
    monkeypatch.chdir("/")
    with pytest.raises(SystemExit, match=r"sweeps/lr_grid.yaml: no such sweep file .* the clone"):
        open_study("lr_grid", arms, FACTORS)


def test_one_name_works_where_several_are_meant(arms: Path) -> None:
    study = open_study("lr_grid", arms, "model.freeze_patch_embed")
    assert (
        study.table.columns.tolist() == open_study("lr_grid", arms, FACTORS).table.columns.tolist()
    )
    learned, frozen = study.ends("model.freeze_patch_embed")
    one, several = (study.higher("", frozen, learned, pairs=p) for p in ("seed", ["seed"]))
    assert (one.effect, one.n) == (several.effect, several.n)
    assert "unpaired" not in one.note
    assert study.dip_more("", frozen, learned, within="seed").n == 2


def test_an_evaluation_that_no_run_has_is_refused(arms: Path) -> None:
    with pytest.raises(SystemExit, match="no run has finetune; see the top of sweeps/transfer"):
        open_study("transfer", arms, FACTORS, metric="finetune")


def test_runs_that_did_not_finish_are_in_runs_alone(arms: Path) -> None:
    RunDir(arms / "true").write_status(Status("running", 100, 500))
    study = open_study("lr_grid", arms, FACTORS)
    assert (study.runs.names, study.finished.names) == (["false", "true"], ["false"])
