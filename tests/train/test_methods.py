"""What holds for every framework: it trains through the loop and resumes to the last bit."""

from pathlib import Path

import pytest
import torch

import stabkit
from stabkit.config import ConfigError, MethodConfig
from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.methods import build_method
from tests.conftest import small_config
from tests.train.test_resume import assert_equal_trees, at_call

CASES = {
    "moco": ["method.queue=40"],
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


@pytest.mark.parametrize("case", CASES)
def test_it_trains_and_resumes_to_the_last_bit(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at step 12, so it goes on from 7: frozen prototypes and a queue half filled."""
    config = small_config(*CASES[case])
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


def test_a_setting_that_would_do_nothing_is_refused() -> None:
    for change, owner in (
        ("method.queue=64", "queue 64 does nothing for swav: only for moco"),
        ("method.predictor=false", "only for moco or byol"),
        ("method.scale_loss=false", "only for moco"),
    ):
        with pytest.raises(ConfigError, match=owner):
            small_config("method.name=swav", change)
    with pytest.raises(ConfigError, match="sinkhorn False does nothing for moco: only for swav"):
        small_config("method.sinkhorn=false")
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
