"""A framework's callback takes every option of a Monitor, and hands each on as it was given."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import stabkit
from stabkit.monitor.measure.options import Options

GIVEN_BY_A_CALLBACK = ("model", "optimizer", "folder", "_run_id")
SIGNATURE = inspect.signature(stabkit.Monitor)
OPTIONS = [name for name in SIGNATURE.parameters if name not in GIVEN_BY_A_CALLBACK]
STUB = nn.Linear(2, 2)


def begin_in_lightning(callback: Any) -> None:
    trainer = SimpleNamespace(
        optimizers=[torch.optim.SGD(STUB.parameters())], global_step=8, lr_scheduler_configs=[],
        precision_plugin=SimpleNamespace(scaler=object()), train_dataloader=None, strategy=None,
    )  # fmt: skip
    STUB.hparams = {}  # type: ignore[assignment]
    callback.on_train_start(trainer, STUB)


def begin_in_hugging_face(callback: Any) -> None:
    from transformers import TrainingArguments

    args = TrainingArguments(max_grad_norm=0, use_cpu=True, report_to="none")
    optimizer = torch.optim.SGD(STUB.parameters())
    optimizer.scaler = object()  # type: ignore[attr-defined]
    state = SimpleNamespace(global_step=8)
    callback.on_train_begin(args, state, None, model=STUB, optimizer=optimizer)


def test_the_options_that_are_handed_on_are_those_of_the_signature() -> None:
    assert [field.name for field in fields(Options)] == [*OPTIONS, "run_id"]


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("name", "begin"), [("lightning", begin_in_lightning), ("huggingface", begin_in_hugging_face)]
)
def test_each_option_reaches_the_monitor(
    name: str, begin: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning" if name == "lightning" else "transformers")
    integration = import_module(f"stabkit.integrations.{name}")
    arrived: dict[str, Any] = {}

    def seen(*places: Any, **options: Any) -> None:
        SIGNATURE.bind(*places, **options)
        arrived.update(options)

    monkeypatch.setattr(integration, "Monitor", seen)
    given = {option: object() for option in OPTIONS if option != "config"}
    begin(integration.StabkitCallback(tmp_path, **given, config={"mine": 1}))
    assert arrived.keys() == set(OPTIONS)
    assert arrived.pop("config")["mine"] == 1
    assert arrived == given, "what is given comes before what the framework says"
