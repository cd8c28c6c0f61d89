import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import stabkit
from stabkit.config import RunConfig, load_config, save_config
from stabkit.config.schedule import lr_at, momentum_at
from stabkit.rundir import ForeignFolderError, RunDir, Status
from stabkit.train import loop
from stabkit.train.data.batches import make_batch, read_batch
from stabkit.train.data.load import load_data
from stabkit.train.state import TrainState, build_state
from tests.conftest import small_config, tree

CPU = torch.device("cpu")


def bare_training(config: RunConfig) -> tuple[list[float], TrainState]:
    """Train with nothing attached: no monitor, no kNN, no checkpoint."""
    images, _ = load_data(config.data)
    state = build_state(config, len(images), CPU)
    losses = []
    for step in range(config.train.steps):
        batch = make_batch(config, read_batch(config, images, step), CPU)
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(step, config.train.steps, config.optim, config.train.batch)
        momentum = momentum_at(step, config.train.steps, config.method)
        loss, *_ = state.model(batch.view1, batch.view2, batch.labels, momentum, step)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        losses.append(loss.item())
    return losses, state


@pytest.mark.lengthy
@pytest.mark.parametrize("freeze", [False, True])
def test_the_monitor_and_evaluations_change_no_bit(tmp_path: Path, freeze: bool) -> None:
    config = small_config(f"model.freeze_patch_embed={freeze}".lower())
    rng = torch.get_rng_state()
    np_state = copy.deepcopy(np.random.get_state()[1])
    loop.train(config, RunDir(tmp_path))
    assert torch.get_rng_state().equal(rng), "the global generator is the user's"
    np.testing.assert_array_equal(np.random.get_state()[1], np_state)
    losses, state = bare_training(config)
    assert stabkit.open_run(tmp_path).scalar("loss").tolist() == losses
    trained = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["model"]
    for name, value in state.model.state_dict().items():
        assert trained[name].equal(value), name


@pytest.mark.lengthy
def test_a_frozen_patch_projection_keeps_every_bit_and_has_no_gradient(tmp_path: Path) -> None:
    config = small_config("model.freeze_patch_embed=true", "optim.lr=1.0")
    start = build_state(config, 64, CPU).model.state_dict()
    loop.train(config, RunDir(tmp_path))
    trained = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["model"]
    for name in trained:
        if "patch_embed" in name:
            assert trained[name].equal(start[name]), name
    assert not trained["online.backbone.blocks.0.mlp.fc1.weight"].equal(
        start["online.backbone.blocks.0.mlp.fc1.weight"]
    )
    signals = stabkit.open_run(tmp_path).signals()
    patch = signals[signals["layer"] == "patch_embed"]
    assert patch["grad_norm"].isna().all()
    assert patch["param_norm"].nunique() == 1


@pytest.mark.lengthy
def test_recorded_scalars_follow_from_each_other(tmp_path: Path) -> None:
    config = small_config()
    loop.train(config, RunDir(tmp_path))
    run = stabkit.open_run(tmp_path)
    loss, nats = run.scalar("loss"), run.scalar("loss_nats")
    np.testing.assert_allclose(nats, loss / (4 * config.method.temperature), rtol=1e-6)
    chance = math.log(config.train.batch)
    np.testing.assert_allclose(run.scalar("loss_relative"), nats / chance, rtol=1e-6)
    assert run.scalar("nonfinite_layers").eq(0).all()
    evals = run.evals("knn_heldout")
    correct = run.correct("knn_heldout")
    assert correct is not None
    np.testing.assert_allclose(correct.mean(axis=1), evals["value"])


@pytest.mark.lengthy
def test_seeds_differ_and_the_same_seed_does_not(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in "abc")
    loop.train(small_config("train.steps=3", "optim.warmup_steps=0"), RunDir(first))
    loop.train(small_config("train.steps=3", "optim.warmup_steps=0"), RunDir(again))
    loop.train(small_config("train.steps=3", "optim.warmup_steps=0", "seed=1"), RunDir(other))
    losses = [stabkit.open_run(f).scalar("loss").tolist() for f in (first, again, other)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.lengthy
def test_a_diverging_run_ends_with_its_reason_and_a_nonfinite_event(tmp_path: Path) -> None:
    config = small_config("optim.lr=1e30", "optim.lr_rule=none", "optim.warmup_steps=0")
    status = loop.train(config, RunDir(tmp_path))
    assert status.state == "done"
    assert status.reason == "diverged: the features are no longer finite"
    assert status.step < config.train.steps
    run = stabkit.open_run(tmp_path)
    events = run.log()
    nonfinite = events[events["kind"] == "nonfinite"]
    assert len(nonfinite) == 1
    step = int(nonfinite["step"].iloc[0])
    bad = run.scalar("nonfinite_layers")
    assert bad[bad > 0].index[0] == step
    assert step < status.step


@pytest.mark.lengthy
def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    config = small_config("train.steps=4")
    loop.train(config, RunDir(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    assert loop.train(config, RunDir(tmp_path)).state == "done"
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == before


@pytest.mark.lengthy
def test_a_checkpoint_of_another_configuration_is_refused_and_kept(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    other = small_config("train.steps=5")
    loop.train(small_config("train.steps=4"), rundir)
    rundir.write_status(Status("preempted", 4, 4))
    rundir.config_file.write_text(save_config(other), encoding="utf-8")
    before = tree(tmp_path)
    with pytest.raises(ForeignFolderError, match=r"belongs to run .* train it in a folder of its"):
        loop.train(other, rundir)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", [b"not a zip file", b"", b"PK\x03\x04", b"\x80\x02.", b"."])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    rundir = RunDir(tmp_path)
    rundir.config_file.write_text(save_config(small_config()), encoding="utf-8")
    rundir.checkpoint_file.parent.mkdir()
    rundir.checkpoint_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pt: not a file of tensors"):
        loop.train(small_config(), rundir)
    status = rundir.read_status()
    assert status is not None
    assert status.state == "failed"
    assert "not a file of tensors" in str(status.reason)
    assert rundir.checkpoint_file.read_bytes() == content


@pytest.mark.lengthy
def test_a_healthy_run_learns(tmp_path: Path) -> None:
    """On easy views the loss leaves chance and kNN rises: from .24 to .39 when this was written."""
    changes = ["model.depth=2", "views.min_scale=0.6", "train.steps=150", "knn.every=75"]
    sizes = ["data.num_train=1000", "data.num_heldout=200", "knn.queries=200", "knn.bank=200"]
    loop.train(load_config("tiny", [*changes, *sizes]), RunDir(tmp_path))
    run = stabkit.open_run(tmp_path)
    relative = run.scalar("loss_relative")
    assert relative.iloc[:10].mean() > 1.0
    assert relative.iloc[-20:].mean() < 0.97
    knn = run.evals("knn_heldout")["value"]
    assert knn.iloc[-1] > knn.iloc[0] + 0.07  # twice the standard error of either
