"""What of a framework's settings becomes a run's: plain values, and nothing secret."""

import enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

import stabkit
from stabkit.integrations.settings import (
    LONGEST,
    of_optimizer,
    of_scheduler,
    plain,
    with_settings,
)
from tests.monitor.toy import Toy


class Kind(enum.Enum):
    COSINE = "cosine"


def test_what_is_not_plain_is_left_out() -> None:
    settings = {
        "lr": 0.1, "on": True, "name": "vit", "data": Path("a/b"), "kind": Kind.COSINE,
        "sizes": (1, 2), "inner": {"depth": 2, "act": nn.GELU()}, 3: "number", "none": None,
        "net": nn.GELU(), "call": len, "mixed": [1, nn.GELU()], "text": "x" * (LONGEST + 1),
        "many": [0] * (LONGEST + 1),
    }  # fmt: skip
    assert plain(settings) == {
        "lr": 0.1, "on": True, "name": "vit", "data": Path("a/b"), "kind": "cosine",
        "sizes": [1, 2], "inner": {"depth": 2}, "3": "number",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["hub_token", "HF_TOKEN", "wandb_api_key", "openai_key", "password", "client_secret", "auth",
     "aws_credentials", "slack_webhook", "ssh_private"],
)  # fmt: skip
def test_secrets_are_left_out_at_any_depth(name: str) -> None:
    assert plain({name: "s3cret", "hub": {name: "s3cret"}, "list": [{name: "s3cret"}]}) == {}
    assert plain({"password": 1234, "api_key": 5}) == {}


def test_numbers_that_count_tokens_and_keys_are_kept() -> None:
    counts = {"max_tokens": 512, "num_key_value_heads": 4, "use_auth": False}
    assert plain(counts) == counts


def test_what_the_user_sets_comes_first_and_the_rest_stays(tmp_path: Path) -> None:
    options = {"first_step": 3, "config": {"optimizer": {"lr": 0.5}, "mine": 1}}
    own = {"optimizer": {"lr": 0.1, "eps": 1e-8}, "odd": "\ud800", "long": 10**5000}
    assert with_settings(tmp_path, options, own) == {
        "first_step": 3, "config": {"optimizer.lr": 0.5, "optimizer.eps": 1e-8, "mine": 1},
    }  # fmt: skip
    with pytest.raises(ValueError, match="config cannot be written: net is of type GELU"):
        with_settings(tmp_path, {"config": {"net": nn.GELU()}}, own)


def test_a_config_file_of_the_users_own_is_left_to_hold_the_settings(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 3}\n")  # LightningCLI writes one
    options = with_settings(tmp_path, {"first_step": 3}, {"lr": 0.1})
    assert options == {"first_step": 3}
    toy = Toy()
    with toy.monitor(tmp_path, **options) as monitor:
        toy.steps(3, monitor)
    assert stabkit.open_run(tmp_path).settings == {"trainer.max_epochs": 3}


def test_options_of_an_optimizer_are_those_it_was_made_with() -> None:
    net = nn.Linear(2, 2)
    groups: list[dict[str, Any]] = [
        {"params": [net.weight], "weight_decay": 0.1},
        {"params": [net.bias]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.4, momentum=0.9)
    assert of_optimizer(optimizer) == {
        "name": "SGD", "lr": 0.4, "momentum": 0.9, "dampening": 0, "weight_decay": [0.1, 0],
        "nesterov": False, "maximize": False,
    }  # fmt: skip
    schedule = LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    assert of_optimizer(optimizer)["lr"] == 0.4
    assert of_scheduler(schedule) == {"name": "LambdaLR"}


def test_of_a_scheduler_only_what_does_not_change() -> None:
    def made() -> torch.optim.Optimizer:
        return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.4, momentum=0.9)

    step = StepLR(made(), 10, 0.5)
    before = of_scheduler(step)
    step.optimizer.step()
    step.step()
    assert of_scheduler(step) == before == {"name": "StepLR", "step_size": 10, "gamma": 0.5}
    assert of_scheduler(OneCycleLR(made(), 0.1, total_steps=9))["total_steps"] == 9
    assert of_scheduler(ReduceLROnPlateau(made(), patience=3))["patience"] == 3
