"""Branches: a control is the run itself, and each change is the change that it says."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit
from stabkit.branch.begin import Beginnings
from stabkit.branch.control import prove_control
from stabkit.branch.study import FULL, Branch, BranchStudy, config_of_branch, folder_of, plan_study
from stabkit.config import ConfigError, RunConfig, read_config, run_id, save_config, with_settings
from stabkit.replay.proof import ReplayDiffersError
from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.checkpoint_file import read_checkpoint
from stabkit.train.data.batches import read_batch
from stabkit.train.loop import prepare, train
from stabkit.train.stopping import Stop
from tests.conftest import small_config, tree

CONFIG = small_config(
    "knn.every=2", "train.steps=40", "runtime.checkpoint_every=16", "runtime.keep_states=3",
    "runtime.threads=1", "runtime.signals=[features]", "runtime.signals_every=4",
)  # fmt: skip
ONSET, BEGIN, HORIZON = 28, 20, 34


@pytest.fixture(scope="module", autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "run"
    train(CONFIG, RunDir(folder))
    return folder


@pytest.fixture(scope="module")
def study(parent: Path) -> BranchStudy:
    return plan_study(parent, str(ONSET), FULL, until=HORIZON)


@pytest.fixture(scope="module")
def beginnings(study: BranchStudy, tmp_path_factory: pytest.TempPathFactory) -> Beginnings:
    made = Beginnings(study, tmp_path_factory.mktemp("study"))
    made.make_states(lambda _: None)
    return made


def named(study: BranchStudy, name: str) -> Branch:
    return next(branch for branch in study.branches if branch.name == name)


def begun(beginnings: Beginnings, branch: Branch, kick: float = 1e-3) -> tuple[RunConfig, RunDir]:
    config = config_of_branch(beginnings.study, branch, kick)
    beginnings.make_folder(branch, kick)
    return config, RunDir(beginnings.folder / folder_of(branch, config))


def trained(beginnings: Beginnings, name: str) -> RunDir:
    config, rundir = begun(beginnings, named(beginnings.study, name))
    assert train(config, rundir).state == "done"
    return rundir


def weights(rundir: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = read_checkpoint(rundir.checkpoint_file)["model"]
    return found


def lr(rundir: RunDir) -> np.ndarray[Any, Any]:
    """Return the rates from step 1 on; that of step 0 is 0."""
    return stabkit.open_run(rundir.path).scalar("lr").to_numpy()[1:]


@pytest.fixture(scope="module")
def control(beginnings: Beginnings) -> RunDir:
    return trained(beginnings, "control")


@pytest.mark.lengthy
def test_a_study_holds_what_the_protocol_asks_for(study: BranchStudy) -> None:
    kinds = [branch.kind for branch in study.branches]
    assert [kinds.count(k) for k in ("control", "placebo", "sham", "intervention")] == [
        1,
        8,
        12,
        60,
    ]
    assert {branch.begin for branch in study.branches} == {BEGIN}
    families = [branch.family for branch in study.branches if branch.kind == "sham"]
    assert sorted(map(families.count, set(families))) == [3, 3, 3, 3]
    ids = {run_id(config_of_branch(study, branch, 1.0)) for branch in study.branches}
    assert len(ids) == len(study.branches), "no two branches are the same"


@pytest.mark.lengthy
def test_a_control_is_the_parent_bit_for_bit(
    study: BranchStudy, control: RunDir, parent: Path
) -> None:
    found = prove_control(study, BEGIN, control.path)
    assert found.rows == HORIZON - BEGIN
    assert found.evaluations > (HORIZON - BEGIN) // 2
    record, here = stabkit.open_run(parent).evals(), stabkit.open_run(control.path).evals()
    assert here["step"].min() == 0, "a branch holds the parent's past"
    assert here["step"].max() == HORIZON
    heldout = record[(record["metric"] == "knn_heldout") & (record["step"] <= HORIZON)]
    own = here[here["metric"] == "knn_heldout"]
    assert own["value"].tolist() == heldout["value"].tolist()
    assert stabkit.open_run(control.path).status().step == HORIZON  # type: ignore[union-attr]


@pytest.mark.lengthy
def test_the_state_at_the_begin_is_the_one_that_the_parent_kept(
    parent: Path, tmp_path: Path
) -> None:
    """One made from the seed, and one from the state of step 16, over steps made again."""
    whole = plan_study(parent, str(ONSET), FULL, begins=[16, 24], until=HORIZON)
    (tmp_path / "kept").mkdir()
    made = Beginnings(whole, tmp_path / "kept")
    made.make_states(lambda _: None)
    bare = Path(shutil.copytree(parent, tmp_path / "bare"))
    shutil.rmtree(bare / "states")
    (bare / "checkpoints/last.pt").unlink()
    (tmp_path / "seed").mkdir()
    seed = Beginnings(whole._replace(parent=bare), tmp_path / "seed")
    said: list[str] = []
    seed.make_states(said.append)
    assert said == [
        "the state before step 16: 16 steps from the start of the run",
        "the state before step 24: 8 steps from the state step-00000016.pt",
    ]
    for step in (16, 24):
        one, other = (read_checkpoint(b.state_file(step)) for b in (made, seed))
        assert all(one["model"][name].equal(other["model"][name]) for name in one["model"])
    kept = read_checkpoint(parent / "states/step-00000016.pt")["model"]
    made_again = read_checkpoint(seed.state_file(16))["model"]
    assert all(kept[name].equal(made_again[name]) for name in kept)


@pytest.mark.lengthy
def test_a_control_that_differs_is_told_with_the_step(
    study: BranchStudy, control: RunDir, tmp_path: Path
) -> None:
    """It begins with a wrong state: that of step 34, said to be that of step 20."""
    content = torch.load(control.checkpoint_file, weights_only=True)
    wrong = Beginnings(study, tmp_path)
    wrong.state_file(BEGIN).parent.mkdir()
    torch.save(content | {"step": BEGIN, "run": run_id(study.config)}, wrong.state_file(BEGIN))
    rundir = trained(wrong, "control")
    with pytest.raises(ReplayDiffersError, match=rf"from step {BEGIN} on: .* was .*perhaps"):
        prove_control(study, BEGIN, rundir.path)


@pytest.mark.lengthy
def test_the_parent_is_only_read(parent: Path, tmp_path: Path) -> None:
    before = tree(parent)
    study = plan_study(parent, str(ONSET), FULL, until=HORIZON)
    made = Beginnings(study, tmp_path)
    made.make_states(lambda _: None)
    made.make_folder(named(study, "placebo-3"), None)
    assert tree(parent) == before


@pytest.mark.lengthy
def test_a_placebo_differs_in_each_matrix_by_one_unit_in_the_last_place(
    beginnings: Beginnings,
) -> None:
    _, rundir = begun(beginnings, named(beginnings.study, "placebo-0"))
    here, there = weights(rundir), read_checkpoint(beginnings.state_file(BEGIN))["model"]
    trained = {
        f"online.{name}": parameter
        for name, parameter in beginnings.parts.state.model.online.named_parameters()
        if parameter.requires_grad
    }
    for name, old in there.items():
        if name in trained and old.ndim > 1:
            ulps = here[name].view(torch.int32) - old.view(torch.int32)
            assert ulps.abs().equal((old != 0).int()), name
        else:
            assert here[name].equal(old), name
    _, other = begun(beginnings, named(beginnings.study, "placebo-1"))
    assert any(not here[k].equal(v) for k, v in weights(other).items())


@pytest.mark.lengthy
def test_a_kick_has_the_norm_that_it_is_given(beginnings: Beginnings) -> None:
    _, rundir = begun(beginnings, named(beginnings.study, "sham-kick-0"), 0.25)
    here, there = weights(rundir), read_checkpoint(beginnings.state_file(BEGIN))["model"]
    squares = [(here[name].double() - there[name].double()).square().sum() for name in there]
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.lengthy
def test_a_kick_is_as_large_as_what_an_intervention_does_at_first(
    study: BranchStudy, beginnings: Beginnings
) -> None:
    """The oracle: the intervention trained for three steps as a branch, beside its control."""
    two = [named(study, "control"), named(study, "half_lr-0")]
    two[1] = two[1]._replace(settings={"optim.lr": CONFIG.optim.lr / 2})
    short = study._replace(branches=tuple(two), horizon=BEGIN + 3)
    made = Beginnings(short, beginnings.folder)
    ends = []
    for branch in two:
        config, rundir = begun(made, branch)
        train(config, rundir)
        ends.append(weights(rundir))
    names = [f"online.{n}" for n, p in made.parts.state.model.online.named_parameters()
             if p.requires_grad]  # fmt: skip
    moved = [(ends[0][n].double() - ends[1][n].double()).square().sum() for n in names]
    size = made.measure_kick()
    assert size == pytest.approx(float(torch.stack(moved).sum().sqrt()), rel=1e-5)


@pytest.mark.lengthy
def test_a_frozen_projection_stays_and_the_rest_moves(beginnings: Beginnings) -> None:
    rundir = trained(beginnings, "freeze-0")
    begin, end = read_checkpoint(beginnings.state_file(BEGIN))["model"], weights(rundir)
    name = "online.backbone.patch_embed.proj."
    one_ulp = {"rtol": 2**-23, "atol": 0}  # the nudge, and no more
    torch.testing.assert_close(end[f"{name}weight"], begin[f"{name}weight"], **one_ulp)
    assert begin[f"{name}bias"].equal(end[f"{name}bias"])
    assert not begin["online.backbone.blocks.0.mlp.fc1.weight"].equal(
        end["online.backbone.blocks.0.mlp.fc1.weight"]
    )
    signals = stabkit.open_run(rundir.path).signals()
    of_patch = signals[(signals["layer"] == "patch_embed") & (signals["step"] >= BEGIN)]
    assert (of_patch["grad_norm"] > 0).all(), "its gradient is still recorded"


@pytest.mark.lengthy
def test_the_learning_rate_is_what_each_intervention_says(
    beginnings: Beginnings, control: RunDir
) -> None:
    usual = lr(control)
    steps = ONSET - BEGIN + 4
    window = lr(trained(beginnings, "half_lr_for_now-0")) / usual
    before, after = [1.0] * (BEGIN - 1), [1.0] * (HORIZON - BEGIN - steps)
    assert window.tolist() == [*before, *([0.5] * steps), *after]
    half = lr(trained(beginnings, "half_lr-0")) / usual
    assert half.tolist() == [*before, *([0.5] * (HORIZON - BEGIN))]
    again = (lr(trained(beginnings, "warm_up_again-0")) / usual)[BEGIN - 1 :]
    np.testing.assert_allclose(again[:steps], np.arange(steps) / steps)
    assert (again[steps:] == 1).all()


@pytest.mark.lengthy
def test_skipped_batches_are_not_seen_and_later_ones_move_up(
    beginnings: Beginnings, study: BranchStudy
) -> None:
    first, count = ONSET - 2, 4
    config = config_of_branch(study, named(study, "skip_batches-0"), None)
    images = prepare(CONFIG, "test").images

    def ids(of: RunConfig, step: int) -> list[int]:
        found: list[int] = read_batch(of, images, step).ids.tolist()
        return found

    assert all(ids(config, s) == ids(CONFIG, s) for s in (BEGIN, first - 1))
    assert all(ids(config, s) == ids(CONFIG, s + count) for s in (first, HORIZON))
    assert stabkit.open_run(trained(beginnings, "skip_batches-0").path).status() is not None


@pytest.mark.lengthy
def test_reset_moments_begin_anew(beginnings: Beginnings) -> None:
    _, whole = begun(beginnings, named(beginnings.study, "reset_moments-0"))
    assert read_checkpoint(whole.checkpoint_file)["optimizer"]["state"] == {}
    end = read_checkpoint(trained(beginnings, "reset_moments-1").checkpoint_file)["optimizer"]
    assert {float(state["step"]) for state in end["state"].values()} == {HORIZON - BEGIN}


def test_its_sham_forgets_the_first_moments_alone(beginnings: Beginnings) -> None:
    _, rundir = begun(beginnings, named(beginnings.study, "sham-moments-0"))
    here = read_checkpoint(rundir.checkpoint_file)["optimizer"]["state"]
    before = read_checkpoint(beginnings.state_file(BEGIN))["optimizer"]["state"]
    assert here.keys() == before.keys()
    for number, one in here.items():
        assert not one["exp_avg"].any()
        assert before[number]["exp_avg"].any()
        assert one["exp_avg_sq"].equal(before[number]["exp_avg_sq"])
        assert one["step"] == before[number]["step"]


@pytest.mark.lengthy
def test_clipping_remembers_the_norms_before_the_begin(
    beginnings: Beginnings, tmp_path: Path
) -> None:
    """The oracle: a run that had the clipping from the start, at a norm that is never reached."""
    changes = {"optim.clip": "patch_embed", "optim.clip_at": 1e9}
    changes |= {"runtime.checkpoint_every": BEGIN, "runtime.keep_states": 4}
    config = RunConfig.model_validate(with_settings(CONFIG.model_dump(), changes))
    train(config, RunDir(tmp_path / "run"))
    there = read_checkpoint(tmp_path / f"run/states/step-{BEGIN:08}.pt")["stabilizer"]["memory"]
    _, rundir = begun(beginnings, named(beginnings.study, "clip-0"))
    here = read_checkpoint(rundir.checkpoint_file)["stabilizer"]["memory"]
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-12)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["beta2-0", "stable_adamw-0", "larger_eps-0", "clip-0"])
def test_settings_hold_from_the_begin_on(
    beginnings: Beginnings, control: RunDir, name: str
) -> None:
    rundir = trained(beginnings, name)
    config = read_config(rundir.config_file)
    groups = read_checkpoint(rundir.checkpoint_file)["optimizer"]["param_groups"]
    assert all(group["betas"] == (0.9, config.optim.beta2) for group in groups)
    assert all(group["eps"] == config.optim.eps for group in groups)
    usual, here = (stabkit.open_run(r.path).scalar("loss") for r in (control, rundir))
    assert usual[:BEGIN].equals(here[:BEGIN]), "the same past"
    assert not usual.equals(here)
    assert abs(here[BEGIN] - usual[BEGIN]) < 1e-4, "the change acts on the update, not before it"


@pytest.mark.lengthy
def test_a_stopped_branch_goes_on_to_the_same_bits(
    beginnings: Beginnings, study: BranchStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rundir = begun(beginnings, named(study, "placebo-5"))
    copy = RunDir(Path(shutil.copytree(rundir.path, tmp_path / rundir.path.name)))
    train(config, rundir)
    stop = Stop()

    def step_then_stop(*arguments: Any) -> None:
        make_step(*arguments)
        stop.signal = signal.SIGTERM if arguments[4] == 25 else None

    make_step = loop.train_step
    monkeypatch.setattr(loop, "train_step", step_then_stop)
    assert train(config, copy, stop).step == 26
    monkeypatch.undo()
    assert train(config, copy).step == HORIZON
    assert all(v.equal(weights(copy)[k]) for k, v in weights(rundir).items())


def test_a_branch_without_its_state_is_refused(beginnings: Beginnings, study: BranchStudy) -> None:
    config, rundir = begun(beginnings, named(study, "placebo-6"))
    rundir.checkpoint_file.unlink()
    with pytest.raises(ConfigError, match="a branch begins with a state of its parent"):
        train(config, rundir)


def test_a_run_that_is_no_branch_has_the_id_and_the_file_that_it_had() -> None:
    assert run_id(CONFIG) == run_id(small_config("knn.every=2", "train.steps=40"))
    assert "branch" not in save_config(CONFIG)
    dumped = CONFIG.model_dump(mode="json", exclude={"runtime"}, exclude_defaults=True)
    assert "branch" not in dumped
