"""`stabkit branch`: what it prints, refuses and runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stabkit.branch import study
from stabkit.branch.interventions import READY
from stabkit.branch.judge.branch_table import branch_table
from stabkit.branch.study import Size
from stabkit.cli import main
from stabkit.config import RunConfig, read_mapping
from stabkit.replay.plan import Event
from stabkit.rundir import RunDir
from stabkit.sweep.grid import Sweep
from stabkit.train.loop import train
from tests.conftest import small_config, tree
from tests.sweep.preloaded import preload
from tests.train.processes import exit_codes, start

CONFIG = small_config("knn.every=2", "train.steps=20", "runtime.threads=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("parent") / "run"
    train(CONFIG, RunDir(folder))
    yield folder
    torch.set_num_threads(before)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a study small: a control, a placebo, a sham and an intervention."""
    monkeypatch.setattr(study, "PLACEBOS", 1)
    monkeypatch.setattr(study, "QUICK", Size(1, 1, ("beta2",)))
    monkeypatch.setattr("stabkit.cli.branch._verdict", lambda folder: 0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train branches in this process, one by one, instead of in the pool."""

    def launch(sweep: Sweep, folder: Path, retry: bool) -> int:
        for run in sweep.runs:
            train(run.config, RunDir(folder / run.folder))
        return 0

    monkeypatch.setattr("stabkit.cli.branch.launch", launch)


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.lengthy
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(here)
    assert main(["branch", "run", "--at", "12", "--full", "--until", "18", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "step 12; branches from step 4 to 18, in branches/run-at-12" in said
    assert "81 branches, 1,134 steps: 1 control, 8 placebos, 12 shams, 60 interventions" in said
    assert "6 x StableAdamW, the moments kept  (kick)" in said
    assert tree(here) == before


def test_the_help_names_every_ready_intervention(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["branch", "--help"])
    said = capsys.readouterr().out
    assert not [name for name in READY if f"{name}," not in said and f"{name};" not in said]


@pytest.mark.lengthy
def test_what_makes_no_sense_for_the_run_is_left_out_and_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = small_config(
        "knn.every=2", "train.steps=12", "model.freeze_patch_embed=true", "optim.beta2=0.9",
        "optim.clip=global", "optim.clip_at=1.0",
    )  # fmt: skip
    train(frozen, RunDir(here / "frozen"))
    words = ["branch", "frozen", "--at", "8", "--full", "--until", "12", "--dry-run"]
    assert main([*words, "--from", "0"]) == 0
    said = capsys.readouterr().out
    assert "left out: freeze, the run trains no patch projection" in said
    assert "left out: clip, the run trains no patch projection" in said
    assert "left out: beta2, optim.beta2 is 0.9 already" in said
    assert "left out: reset_moments, there are no moments before step 0" in said
    assert "(freeze)" not in said, "no shams without their intervention"
    assert main([*words, "--with", "freeze"]) == 2
    assert "freeze: the run trains no patch projection" in capsys.readouterr().err


def test_further_begin_steps_have_controls_and_placebos_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["branch", "run", "--at", "12", "--until", "18", "--dry-run", "--with", "freeze"]
    assert main([*words, "--from", "8", "4", "12"]) == 0
    said = capsys.readouterr().out
    assert "from step 8, 4, 12 to 18" in said
    assert "42 branches, 420 steps: 3 controls, 24 placebos, 12 shams, 3 interventions" in said


def test_batches_can_be_skipped_from_the_onset_on_and_shams_skip_later_ones(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["branch", "run", "--at", "12", "--until", "18", "--from", "12", "--dry-run"]
    assert main([*words, "--with", "skip_batches"]) == 0
    said = capsys.readouterr().out
    assert " 3 x skip the 2 batches from step 12  (skip)" in said
    assert " 6 x skip the 2 batches from step 14  (skip)" in said
    assert " 6 x skip the 2 batches from step 15  (skip)" in said


@pytest.mark.lengthy
def test_a_wrong_request_is_refused_with_what_would_be_right(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(here)

    def refused(*words: str) -> str:
        assert main(["branch", *words]) == 2
        return capsys.readouterr().err

    assert "the run has no dip" in refused("run", "--at", "dip")
    said = refused("run", "--at", "12", "--with", "seed=3", "optim.lrr=1", "frieze")
    assert "seed cannot change while a run trains; these can: optim.name, optim.lr," in said
    assert "optim.lrr: no such setting; did you mean 'optim.lr'?" in said
    assert "did you mean 'freeze'" in said
    assert "clip global needs clip_at" in refused(
        "run", "--at", "12", "--with", "optim.clip=global"
    )
    assert "has these settings already" in refused("run", "--at", "12", "--with", "optim.beta1=0.9")
    assert "only adamw and stable_adamw" in refused("run", "--at", "12", "--with", "optim.name=sgd")
    assert "--from 14: should be a step from 0 to" in refused("run", "--at", "12", "--from", "14")
    assert "two evaluations after the onset" in refused("run", "--at", "12", "--until", "14")
    assert "--until 30: is recorded up to step 20" in refused("run", "--at", "12", "--until", "30")
    assert "write --with before the changes" in refused("run", "--at", "12", "optim.lr=1")
    (here / "other").mkdir()
    (here / "other/thesis.tex").touch()
    assert "holds thesis.tex, and no study" in refused("run", "--at", "12", "-o", "other")
    shutil.rmtree(here / "other")
    (here / "loop").mkdir()
    assert "for a loop of your own there is stabkit.branch_loop" in refused("loop", "--at", "12")
    (here / "loop").rmdir()
    assert tree(here).keys() == before.keys()


def test_an_event_that_no_branch_is_judged_by_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Event("collapse", 12, 12, "collapse at steps 12 to 12")
    monkeypatch.setattr(study, "find_event", lambda *_: found)
    assert main(["branch", "run", "--at", "collapse"]) == 2
    assert "no branch is judged by a collapse; by dip, burst" in capsys.readouterr().err


WORDS = ["branch", "run", "--at", "14", "--until", "18"]


@pytest.mark.processes
@pytest.mark.usefixtures("few")
def test_the_pool_trains_a_study(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    preload(monkeypatch)
    assert main(WORDS) == 0
    assert "control is the run bit for bit: 12 steps," in capsys.readouterr().out
    folder = here / "branches/run-at-14"
    branches = read_mapping(folder / "branches.yaml")["branches"]
    assert [RunDir(folder / b["folder"]).standing() for b in branches] == ["done"] * 4
    assert main(["status", str(folder)]) == 0
    assert capsys.readouterr().out.count("done ") == 4


@pytest.mark.lengthy
@pytest.mark.usefixtures("few", "alone")
def test_the_plan_is_a_file_and_the_same_command_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(WORDS) == 0
    folder = here / "branches/run-at-14"
    plan = read_mapping(folder / "branches.yaml")
    kinds = ["control", "placebo", "sham", "intervention"]
    assert [branch["kind"] for branch in plan["branches"]] == kinds
    assert plan["kick"] > 0
    assert plan["made_in"] == "../.."
    assert plan["event"] == {"kind": "step", "onset": 14, "end": 14, "bottom": 14, "layer": None}
    assert (plan["horizon"], plan["branches"][0]["begin"]) == (18, 6)
    # a branch that is gone is made again, and nothing else is touched
    placebo, gone = (folder / plan["branches"][i]["folder"] for i in (1, 3))
    before, weights = tree(placebo), (gone / "checkpoints/last.pt").read_bytes()
    shutil.rmtree(gone)
    assert main(WORDS) == 0
    assert tree(placebo) == before
    assert (gone / "checkpoints/last.pt").read_bytes() == weights
    capsys.readouterr()
    assert main([*WORDS, "--with", "freeze"]) == 2
    assert "holds another study, other in branches" in capsys.readouterr().err


@pytest.mark.lengthy
@pytest.mark.usefixtures("few", "alone")
def test_a_control_that_differs_ends_the_study_before_the_other_branches(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = small_config("knn.every=2", "train.steps=20", "runtime.threads=1", "optim.lr=0.5")
    train(other, RunDir(here / "other"))
    for table in ("layers", "scalars", "evals"):  # the record of another training
        shutil.rmtree(here / "run" / table)
        shutil.copytree(here / "other" / table, here / "run" / table)
    (here / "run/checkpoints/last.pt").unlink()
    assert main(WORDS) == 1
    said = capsys.readouterr()
    assert "control differs from the record from step 6 on: " in said.err
    assert "perhaps its files, its data or stabkit's code were changed" in said.err
    made = [path.name.partition("-")[0] for path in (here / "branches/run-at-14").glob("*-*")]
    assert made == ["control"]


def branch_of_three(run: Path, out: Path) -> None:
    study.PLACEBOS, study.QUICK = 1, Size(1, 1, ("beta2",))
    code = main(["branch", str(run), "--at", "8", "--from", "4", "--until", "12", "-o", str(out)])
    if code:
        raise SystemExit(code)


def train_three(folder: Path, config: RunConfig) -> None:
    train(config, RunDir(folder))


@pytest.mark.processes
def test_a_run_of_three_processes_is_branched_by_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begin before a step without a kept state, so that the three also make the state."""
    config = small_config(
        "train.batch=12", "train.steps=14", "knn.every=2", "runtime.threads=1",
        "runtime.checkpoint_every=3", "runtime.keep_states=4",
    )  # fmt: skip
    run, out = tmp_path / "run", tmp_path / "study"
    assert exit_codes(start(3, train_three, run, config)) == [0, 0, 0]
    assert main(["branch", str(run), "--at", "8"]) == 2
    assert "torchrun --nproc-per-node 3 -m stabkit branch" in capsys.readouterr().err
    assert exit_codes(start(3, branch_of_three, run, out)) == [0, 0, 0]
    table = branch_table(out)
    assert table["kind"].tolist() == ["control", "placebo", "sham", "intervention"]
    assert (out / "figures" / "branches.png").is_file()
    for row in table.itertuples():
        attempts = RunDir(out / row.branch).read_meta()["attempts"]
        assert [attempt["processes"] for attempt in attempts] == [3, 3]
    # the study is done, so the same command trains nothing and tells the verdict again
    before = tree(out)
    assert exit_codes(start(3, branch_of_three, run, out)) == [0, 0, 0]
    assert tree(out).keys() == before.keys()
