"""Real trainings with transformers' Trainer: what is recorded beside what the test computed."""

import importlib
import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import stabkit
from tests.integrations.oracle import Norms, assert_recorded, grad_norms, same, weights

pytest.importorskip("transformers", reason="needs transformers: pip install 'stabkit[huggingface]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install 'stabkit[huggingface]'")

from transformers import Trainer, TrainerCallback, TrainingArguments

from stabkit.integrations.huggingface import StabkitCallback, watch

LAYERS = {name: f"vit.{name}" for name in ("patch_embed", "cls_token", "pos_embed", "norm", "head")}
LAYERS |= {name: f"vit.{name}" for name in ("blocks.0", "blocks.1")}
# `pin_memory` is on by default, also where there is no accelerator
pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]


class Classifier(nn.Module):
    """What a Trainer asks of a model, around timm's ViT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2,
            num_classes=2,
        )  # fmt: skip

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.vit(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Images(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, size: int) -> None:
        g = torch.Generator().manual_seed(1)
        self.images = torch.randn(size, 3, 8, 8, generator=g) * 5
        self.labels = torch.randint(2, (size,), generator=g)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"images": self.images[i], "labels": self.labels[i]}


class Seeing(Trainer):
    """Keeps, after each backward pass, the gradients so far: the last of a step is whole."""

    seen: dict[int, Norms]
    losses: dict[int, Tensor]
    fail_at: int | None = None
    overflow_at: int | None = None

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        step = self.state.global_step
        if step == self.fail_at:
            raise RuntimeError("as planned")
        loss = super().training_step(model, *args, **kwargs)
        if step == self.overflow_at:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.inf)
        self.seen[step] = grad_norms(model)
        self.losses[step] = self.losses[step] + loss if step in self.losses else loss
        return loss


def trainer(folder: Path, images: int = 32, **options: Any) -> Seeing:
    quiet: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.01,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    callbacks = options.pop("callbacks", [])
    args = TrainingArguments(str(folder), **{**quiet, **options})
    made = Seeing(Classifier(), args, train_dataset=Images(images), callbacks=callbacks)
    made.seen, made.losses = {}, {}
    return made


def losses(one: Seeing) -> list[float]:
    return [float(loss) for loss in one.losses.values()]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_watched_gradients_are_those_before_clipping(tmp_path: Path, accumulate: int) -> None:
    options = {"max_grad_norm": 0.1, "gradient_accumulation_steps": accumulate}
    one = trainer(tmp_path / "hf", **options)
    clip, step = one.accelerator.clip_grad_norm_, one.training_step
    with watch(one, tmp_path / "run"):
        one.train()
    bare = trainer(tmp_path / "hf", **options)
    bare.train()
    assert losses(one) == losses(bare)
    assert same(weights(one.model), weights(bare.model))
    assert sorted(one.seen) == list(range(8 // accumulate))
    assert min(sum(n.values()) for n in one.seen.values()) > 0.1**2, "nothing was to be clipped"
    assert_recorded(tmp_path / "run", one.seen, LAYERS)
    run = stabkit.open_run(tmp_path / "run")
    assert run.scalar("loss").tolist() == losses(one)
    assert run.scalar("lr").tolist() == pytest.approx(
        [0.01 * (1 - i / len(one.seen)) for i in range(len(one.seen))]
    )
    # as it was: nothing of ours is left on the Trainer
    assert one.accelerator.clip_grad_norm_ == clip
    assert one.training_step == step
    assert not any(isinstance(c, StabkitCallback) for c in one.callback_handler.callbacks)


def test_the_callback_alone_says_that_it_sees_clipped_gradients(tmp_path: Path) -> None:
    one = trainer(tmp_path / "hf", callbacks=[StabkitCallback(tmp_path / "run")])
    with pytest.warns(UserWarning, match="max_grad_norm is 1, .*watch"):
        one.train()
    signals = stabkit.open_run(tmp_path / "run").signals()
    norms = signals.groupby("step")["grad_norm"].apply(lambda g: float((g**2).sum() ** 0.5))
    # accelerate divides by the norm plus 1e-6
    expected = [min(1.0, sum(n.values()) ** 0.5) for n in one.seen.values()]
    assert norms.tolist() == pytest.approx(expected, rel=1e-5)
    assert norms.max() == pytest.approx(1.0, rel=1e-5), "nothing was to be clipped"


def test_the_callback_alone_records_all_where_nothing_is_clipped(tmp_path: Path) -> None:
    one = trainer(
        tmp_path / "hf",
        callbacks=[StabkitCallback(tmp_path / "run")],
        max_grad_norm=0.0,
        logging_strategy="steps",
        logging_steps=2,
    )
    one.train()
    assert_recorded(tmp_path / "run", one.seen, LAYERS)
    loss = stabkit.open_run(tmp_path / "run").scalar("loss")
    assert loss.index.tolist() == [1, 3, 5, 7]
    each = losses(one)
    means = [(each[i] + each[i + 1]) / 2 for i in (0, 2, 4, 6)]
    assert loss.tolist() == pytest.approx(means, abs=6e-5)  # some versions log four digits


def test_a_training_from_a_checkpoint_goes_on_in_the_folder(tmp_path: Path) -> None:
    """The broken training records two steps more than its checkpoint has."""
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path / "whole_hf")
    with watch(whole, tmp_path / "whole"):
        whole.train()
    first = trainer(tmp_path / "hf", **saving)
    first.fail_at = 6
    with pytest.raises(RuntimeError, match="as planned"), watch(first, tmp_path / "run"):
        first.train()
    assert stabkit.open_run(tmp_path / "run").scalar("loss").index.tolist() == [0, 1, 2, 3, 4, 5]
    status = stabkit.open_run(tmp_path / "run").status()
    assert status is not None
    assert (status.state, status.reason) == ("failed", "RuntimeError: as planned")
    assert "training_step" not in vars(first)
    second = trainer(tmp_path / "hf", **saving)
    with watch(second, tmp_path / "run"):
        second.train(resume_from_checkpoint=str(tmp_path / "hf" / "checkpoint-4"))
    a, b = (stabkit.open_run(tmp_path / name).signals() for name in ("whole", "run"))
    assert a["step"].tolist() == b["step"].tolist()
    assert a["grad_norm"].tolist() == b["grad_norm"].tolist()
    joined = stabkit.open_run(tmp_path / "run").scalar("loss")
    assert joined.index.tolist() == list(range(8))
    assert joined.tolist() == losses(whole)
    state = (tmp_path / "hf" / "checkpoint-4" / "trainer_state.json").read_text()
    assert "tabkit" not in state


def test_the_arguments_of_the_trainer_are_the_settings_of_the_run(tmp_path: Path) -> None:
    @dataclass
    class Arguments(TrainingArguments):
        temperature: float = 0.2
        judge_key: str = "sk-secret"

    args = Arguments(
        str(tmp_path / "hf"), per_device_train_batch_size=4, max_steps=2, learning_rate=0.02,
        weight_decay=0.1, warmup_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no", hub_token="hf_secret",
    )  # fmt: skip
    one = Seeing(Classifier(), args, train_dataset=Images(8))
    one.seen, one.losses = {}, {}
    with watch(one, tmp_path / "run", config={"seed": 7}):
        one.train()
    settings = stabkit.open_run(tmp_path / "run").settings
    expected = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 2,
        "max_grad_norm": 1.0, "lr_scheduler_type": "linear", "warmup_steps": 1, "bf16": False,
        "world_size": 1, "trainer_seed": 42, "seed": 7, "temperature": 0.2,
        "optimizer.name": "AdamW",
        "optimizer.lr": 0.02, "optimizer.weight_decay": [0.1, 0.0],
        "optimizer.betas": [0.9, 0.999],
    }  # fmt: skip
    assert {name: settings.get(name) for name in expected} == expected
    assert not {"output_dir", "logging_steps", "hub_token", "judge_key", "learning_rate"} & {
        *settings
    }
    assert "secret" not in (tmp_path / "run" / "config.yaml").read_text()


def test_a_second_training_of_the_same_trainer_is_seen_too(tmp_path: Path) -> None:
    one = trainer(tmp_path / "hf")
    with watch(one, tmp_path / "run") as callback:
        one.train()
        assert callback.monitor is None
        callback.folder = tmp_path / "again"
        one.train()
    assert len(stabkit.open_run(tmp_path / "again").scalar("loss")) == 8


class Asks(TrainerCallback):  # type: ignore[misc]
    """A user's reaction: stop at non-finite gradients."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.watching.monitor is not None
        if state.global_step == 0:
            self.watching.monitor.on("nonfinite", "stop")

    watching: StabkitCallback


def test_a_reaction_that_asks_to_stop_ends_the_training(tmp_path: Path) -> None:
    asks = Asks()
    one = trainer(tmp_path / "hf", callbacks=[asks])
    one.overflow_at = 2
    with watch(one, tmp_path / "run", flush_every=1) as asks.watching:
        one.train()
    # a row is read when the one after it is begun to be copied: two steps later
    assert sorted(one.seen) == [0, 1, 2, 3, 4]
    assert "nonfinite" in stabkit.open_run(tmp_path / "run").log()["kind"].tolist()


@pytest.mark.parametrize("missing", ["transformers", "accelerate"])
def test_without_it_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in (missing, f"{missing}.optimizer"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "stabkit.integrations.huggingface")
    with pytest.raises(ImportError, match=r"pip install 'stabkit\[huggingface\]'"):
        importlib.import_module("stabkit.integrations.huggingface")


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
