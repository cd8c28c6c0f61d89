"""Every framework trains through the loop and resumes to the last bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import stabkit
from stabkit.config import ConfigError, MethodConfig
from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.methods.build import build_method
from tests.conftest import small_config
from tests.train.small import halves, kinds, small_method, views
from tests.train.test_resume import assert_equal_trees, at_call

CASES = {
    "moco": ["method.queue=200"],
    "moco without a predictor": ["method.predictor=false", "method.momentum=0"],
    "moco without bn": ["method.head_norm=none", "method.scale_loss=false"],
    "simclr": ["method.name=simclr"],
    "byol": ["method.name=byol"],
    "swav": ["method.name=swav", "method.prototypes=12", "method.freeze_prototypes_steps=9"],
    "supervised": ["method.name=supervised"],
}
BACKBONE = ["patch_embed", "cls_token", "pos_embed", "blocks.0", "blocks.1", "norm"]
HEADS = {
    "moco": ["projector", "predictor"],
    "moco without a predictor": ["projector"],
    "moco without bn": ["projector", "predictor"],
    "simclr": ["projector"],
    "byol": ["projector", "predictor"],
    "swav": ["projector", "prototypes"],
    "supervised": ["head"],
}


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.lengthy
@pytest.mark.parametrize("case", CASES)
def test_it_trains_and_resumes_to_the_last_bit(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt at step 12, so it resumes from 7: frozen prototypes and a queue half filled.

    After 16 steps the queue has overflowed and the prototypes have moved.
    """
    config = small_config(*CASES[case], "train.steps=16")
    unbroken, broken = RunDir(tmp_path / "unbroken"), RunDir(tmp_path / "broken")
    loop.train(config, unbroken)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", at_call(loop.train_step, 13, interrupted))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, broken)
    assert loop.train(config, broken).reason is None
    states = [torch.load(r.checkpoint_file, weights_only=True) for r in (unbroken, broken)]
    assert states[0]["step"] == config.train.steps
    assert_equal_trees(*states)

    runs = [stabkit.open_run(r.path) for r in (unbroken, broken)]
    assert runs[0].signals()["layer"].unique().tolist() == BACKBONE + HEADS[case]
    names = {"loss", "lr"}
    if case != "byol":
        names |= {"loss_nats", "loss_relative"}
    if case.startswith("moco") or case == "byol":
        names |= {"momentum"}
    recorded = set(runs[0].scalars()["name"])
    possible = {"loss", "lr", "loss_nats", "loss_relative", "momentum"}
    assert recorded & possible == names
    for name in names:
        series = [run.scalar(name) for run in runs]
        assert series[0].index.tolist() == list(range(config.train.steps))
        assert series[0].equals(series[1]), name


@pytest.mark.parametrize("norm", ["batch", "hidden", "none"])
@pytest.mark.parametrize("name", ["moco", "simclr", "byol", "swav"])
def test_head_norm_is_obeyed_by_every_framework(name: str, norm: str) -> None:
    bn = ["BatchNorm1d"]
    layer = ["Linear", *(bn if norm != "none" else []), "ReLU"]
    last = ["Linear", *(bn if norm == "batch" else [])]
    online = small_method(name, head_norm=norm).online
    assert kinds(online.projector) == [*layer, *layer, *last]
    assert kinds(online.predictor) == ([*layer, *last] if name in ("moco", "byol") else [])


WHOLE = {
    "moco": {"queue": 20},
    "simclr": {},
    "byol": {},
    "swav": {"freeze_prototypes_steps": 1},
    "supervised": {},
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", WHOLE)
def test_two_processes_equal_one_with_all_the_images(name: str, tmp_path: Path) -> None:
    """Compare loss, gradients and queue, without BN: it uses the images of its own process only."""
    norm = {} if name == "supervised" else {"head_norm": "none"}
    view1, view2, labels = views()

    def two_steps(rows: slice) -> tuple[list[Tensor], dict[str, Tensor]]:
        method = small_method(name, **WHOLE[name], **norm).double()
        found = []
        for step in range(2):
            method.zero_grad()
            pair = (view1 + 0.1 * step, view2 - 0.1 * step)
            loss, *_ = method(*(v[rows] for v in (*pair, labels)), 0.9, step)
            loss.backward()
            grads = [p.grad for p in method.online.parameters() if p.grad is not None]
            found += [loss.detach(), *grads]
        queue = {k: v for k, v in method.state_dict().items() if k.startswith("queue")}
        return found, queue

    (found, queue), single = zip(*halves(two_steps, 6, tmp_path), strict=True), two_steps(slice(6))
    means = [sum(both) / 2 for both in zip(*found, strict=True)]
    # Sums in another order differ by 4e-16 to 3e-15 of the largest value.
    torch.testing.assert_close(means, single[0], rtol=1e-12, atol=1e-14)
    for own in queue:
        torch.testing.assert_close(own, single[1], rtol=1e-12, atol=1e-14)


def test_a_setting_without_effect_is_refused() -> None:
    for name, change, reason in (
        ("swav", "queue=64", "queue 64 does nothing for swav: only for moco"),
        ("swav", "predictor=false", "only for moco or byol"),
        ("swav", "scale_loss=false", "only for moco"),
        ("moco", "sinkhorn=false", "sinkhorn False does nothing for moco: only for swav"),
        ("moco", "sinkhorn_eps=0.1", "only for swav"),
        ("simclr", "momentum_schedule=constant", "only for moco or byol"),
        ("supervised", "head_norm=none", "only for moco or simclr or byol or swav"),
    ):
        with pytest.raises(ConfigError, match=reason):
            small_config(f"method.name={name}", f"method.{change}")
    with pytest.raises(ConfigError, match="predictor_norm hidden needs predictor true"):
        small_config("method.predictor=false", "method.predictor_norm=hidden")


def test_temperature_is_the_frameworks_own_unless_given() -> None:
    found = {
        n: MethodConfig.model_validate({"name": n}).temperature for n in ("moco", "simclr", "swav")
    }
    assert found == {"moco": 0.2, "simclr": 0.1, "swav": 0.1}
    given = small_config("method.name=swav", "method.temperature=0.2").method
    assert given.temperature == 0.2
    assert MethodConfig.model_validate(given.model_dump()) == given


def test_supervised_training_needs_classes() -> None:
    config = MethodConfig(name="supervised")
    with pytest.raises(ValueError, match="needs at least 2 classes, not 0"):
        build_method(config, torch.nn.Identity(), 4, 0)
