"""Real fits with Lightning's Trainer: what is recorded beside what a hook of the module saw."""

import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabkit
from tests.convert.conftest import converted
from tests.integrations.oracle import Norms, assert_recorded, grad_norms, same, weights

pytest.importorskip("lightning", reason="needs Lightning: pip install 'stabkit[lightning]'")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import grad_norm

from stabkit.integrations.lightning import StabkitCallback

LAYERS = {"net.0": "net.0", "net.2": "net.2"}
# of Lightning itself and of this machine, not of the callback
pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),
]


class Net(LightningModule):
    """Keeps the gradients it saw before each step, and the losses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
        self.seen: dict[int, Norms] = {}
        self.losses: list[float] = []
        self.fail_at: int | None = None
        self.error: BaseException = RuntimeError("as planned")
        self.scale = 1.0

    def fail_when_planned(self) -> None:
        if self.global_step == self.fail_at:
            raise self.error

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.fail_when_planned()
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen[self.global_step] = grad_norms(self, self.scale)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def data(batches: int = 8) -> torch.utils.data.DataLoader[Any]:
    """In a fixed order. Large inputs: without clipping the norms are well above 0.1."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batches * 4, 4, generator=g) * 5
    y = torch.randint(2, (batches * 4,), generator=g)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)


def fit(net: Any, *callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> Any:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "max_epochs": 1,
    }
    trainer = Trainer(**{**quiet, **options}, callbacks=list(callbacks))
    trainer.fit(net, data(), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("clip", [None, 0.1])
def test_gradients_loss_and_rate_of_every_step_and_training_as_without(
    tmp_path: Path, clip: float | None
) -> None:
    net, bare = Net(), Net()
    fit(net, StabkitCallback(tmp_path / "run"), gradient_clip_val=clip)
    fit(bare, gradient_clip_val=clip)
    assert net.losses == bare.losses
    assert same(weights(net), weights(bare))
    assert_recorded(tmp_path / "run", net.seen, LAYERS)
    assert max(sum(n.values()) for n in net.seen.values()) > 0.1**2, "nothing was to be clipped"
    run = stabkit.open_run(tmp_path / "run")
    assert run.scalar("loss").tolist() == net.losses
    assert run.scalar("lr").tolist() == pytest.approx([0.1 * 0.9**i for i in range(8)])


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    net = Net()
    fit(net, StabkitCallback(tmp_path), accumulate_grad_batches=4, gradient_clip_val=0.1)
    assert sorted(net.seen) == [0, 1]
    assert_recorded(tmp_path, net.seen, LAYERS)
    means = [sum(net.losses[i : i + 4]) / 4 for i in (0, 4)]
    # float32 quarters are exact, their sum rounds 3 times
    assert stabkit.open_run(tmp_path).scalar("loss").tolist() == pytest.approx(means, rel=2e-7)


def scaled(scale: float) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    return MixedPrecision("16-mixed", "cpu", scaler)


def test_half_precision_is_recorded_without_its_scale(tmp_path: Path) -> None:
    net = Net()
    fit(net, StabkitCallback(tmp_path), plugins=scaled(1024.0), gradient_clip_val=0.1)
    assert_recorded(tmp_path, net.seen, LAYERS)  # Lightning has unscaled them before its hook
    run = stabkit.open_run(tmp_path)
    assert run.scalar("loss").tolist() == net.losses
    assert set(run.scalar("grad_scale")) == {1024.0}


class Two(Net):
    """Manual optimisation: the trunk and the head have an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        self.fail_when_planned()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        both = self.optimizers()
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(loss)
        self.seen[len(self.losses)] = grad_norms(self)
        for optimizer in both:
            optimizer.step()
        self.losses.append(loss.item())
        return {"loss": loss}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 2)]


def test_the_settings_of_the_fit_are_those_of_the_run(tmp_path: Path) -> None:
    class WithSettings(Net):
        def __init__(self, width: int, loss: Any, hub_token: str, precision: str) -> None:
            super().__init__()
            self.save_hyperparameters()

    net = WithSettings(8, math.sqrt, "hf_secret", "mine")
    callback = StabkitCallback(tmp_path, config={"data": {"name": "toy"}, "width": 9})
    fit(net, callback, gradient_clip_val=0.5, accumulate_grad_batches=2)
    assert stabkit.open_run(tmp_path).settings == {
        "max_epochs": 1, "max_steps": -1, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5,
        "precision": "mine", "world_size": 1, "batch_size": 4, "width": 9, "data.name": "toy",
        "optimizer.name": "AdamW", "optimizer.lr": 0.1, "optimizer.betas": [0.9, 0.999],
        "optimizer.eps": 1e-8, "optimizer.weight_decay": 0.01, "optimizer.amsgrad": False,
        "optimizer.maximize": False, "optimizer.decoupled_weight_decay": True,
        "scheduler.name": "StepLR", "scheduler.step_size": 1, "scheduler.gamma": 0.9,
    }  # fmt: skip
    assert "hf_secret" not in (tmp_path / "config.yaml").read_text()


def test_several_optimizers_of_manual_optimisation(tmp_path: Path) -> None:
    net, bare = Two(), Two()
    trainer = fit(net, StabkitCallback(tmp_path))
    fit(bare)
    assert trainer.global_step == 16
    assert same(weights(net), weights(bare))
    assert_recorded(tmp_path, net.seen, LAYERS)
    assert stabkit.open_run(tmp_path).scalar("loss").tolist() == net.losses


class ByClosure(Two):
    """`optimizer.step(closure)`: the backward pass is within the step."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        optimizer = self.optimizers()
        kept = []

        def closure() -> None:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            self.seen[len(self.losses)] = grad_norms(self)
            kept.append(loss)

        optimizer.step(closure=closure)
        self.losses.append(kept[0].item())
        return {"loss": kept[0]}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_closure_of_manual_optimisation(tmp_path: Path) -> None:
    net = ByClosure()
    fit(net, StabkitCallback(tmp_path))
    assert_recorded(tmp_path, net.seen, LAYERS)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.parametrize("module", [Net, Two])
def test_a_fit_from_a_checkpoint_goes_on_in_the_folder(tmp_path: Path, module: Any) -> None:
    """The fit breaks two steps after its last checkpoint: these are made again."""
    whole, first, second = module(), module(), module()
    steps = 1 if module is Net else 2  # that Lightning counts for a batch
    fit(whole, StabkitCallback(tmp_path / "whole"), max_epochs=2)

    def saving() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8 * steps)

    first.fail_at = 10 * steps
    with pytest.raises(RuntimeError, match="as planned"):
        fit(first, StabkitCallback(tmp_path / "run"), saving(), max_epochs=2)
    assert stabkit.open_run(tmp_path / "run").scalar("loss").index.tolist() == list(range(10))
    kept = tmp_path / f"step={8 * steps}.ckpt"
    fit(second, StabkitCallback(tmp_path / "run"), saving(), ckpt_path=kept, max_epochs=2)
    assert second.losses == whole.losses[8:]
    runs = [stabkit.open_run(tmp_path / name) for name in ("whole", "run")]
    a, b = (run.signals() for run in runs)
    assert a["step"].tolist() == b["step"].tolist()
    assert a["grad_norm"].tolist() == b["grad_norm"].tolist()
    assert runs[1].scalar("loss").index.tolist() == list(range(16))
    assert runs[1].scalar("loss").tolist() == whole.losses
    state = torch.load(kept, weights_only=True)
    assert "tabkit" not in repr(state.keys()) + repr(state["callbacks"])


@pytest.mark.parametrize(
    ("error", "state"), [(RuntimeError("as planned"), "failed"), (KeyboardInterrupt(), "preempted")]
)
def test_an_exception_loses_no_step(tmp_path: Path, error: BaseException, state: str) -> None:
    net = Net()
    net.fail_at, net.error = 5, error
    callback = StabkitCallback(tmp_path)
    with pytest.raises((RuntimeError, SystemExit)):  # Lightning exits on Ctrl-C
        fit(net, callback)
    assert callback.monitor is None
    assert_recorded(tmp_path, net.seen, LAYERS)
    assert sorted(net.seen) == [0, 1, 2, 3, 4]
    status = stabkit.open_run(tmp_path).status()
    assert status is not None
    assert status.state == state
    assert state == "preempted" or status.reason == "RuntimeError: as planned"


class Overflows(Net):
    """Asks to stop at non-finite gradients, and has some at the third step."""

    callback: StabkitCallback

    def on_train_start(self) -> None:
        assert self.callback.monitor is not None
        self.callback.monitor.on("nonfinite", "stop")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (math.inf if batch_idx == 2 else 1.0)


def test_a_reaction_that_asks_to_stop_ends_the_fit(tmp_path: Path) -> None:
    net = Overflows()
    net.callback = StabkitCallback(tmp_path, flush_every=1)
    fit(net, net.callback)
    # a row is read when the one after it is begun to be copied: two steps later
    assert sorted(net.seen) == [0, 1, 2, 3, 4]
    assert "nonfinite" in stabkit.open_run(tmp_path).log()["kind"].tolist()


def test_evaluations_of_a_validation_loop(tmp_path: Path) -> None:
    callback = StabkitCallback(tmp_path)

    class Validated(Net):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            if callback.monitor is not None:  # none in the check before training
                predicted = self.net(batch[0]).argmax(1)
                callback.monitor.log_eval(self.global_step, "val", predicted, batch[1])

    net = Validated()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, max_epochs=1, val_check_interval=4, limit_val_batches=1,
        callbacks=[callback],
    )  # fmt: skip
    trainer.fit(net, data(), data())
    assert stabkit.open_run(tmp_path).evals("val")["step"].tolist() == [4, 8]


def test_the_other_name_of_lightning_takes_it_too(tmp_path: Path) -> None:
    """solo-learn and others import `pytorch_lightning`, whose classes are not Lightning's."""
    pl = pytest.importorskip("pytorch_lightning", reason="pip install pytorch-lightning")

    class Other(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()
            self.losses: list[float] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.inner.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.inner.seen[self.global_step] = grad_norms(self.inner)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    net = Other()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, max_epochs=1, gradient_clip_val=0.1,
        callbacks=StabkitCallback(tmp_path),
    )  # fmt: skip
    trainer.fit(net, data())
    assert_recorded(tmp_path, net.inner.seen, LAYERS)
    assert stabkit.open_run(tmp_path).scalar("loss").tolist() == net.losses


class Skips(Net):
    """One batch gives gradients that half precision cannot hold."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1e30 if batch_idx == 2 else 1.0)


def test_a_step_that_the_scaler_skips_is_a_step(tmp_path: Path) -> None:
    net = Skips()
    trainer = fit(net, StabkitCallback(tmp_path), plugins=scaled(1024.0), gradient_clip_val=0.1)
    assert trainer.global_step == 8
    run = stabkit.open_run(tmp_path)
    total = run.scalar("grad_norm_total")
    assert total.index.tolist() == list(range(8))
    assert [bool(x) for x in total.apply(torch.tensor).apply(torch.isfinite)] == [
        step != 2 for step in range(8)
    ]
    assert run.scalar("grad_scale").tolist() == [1024.0] * 3 + [512.0] * 5
    assert run.log_entries() == []  # a scaler finds its scale so


def test_a_strategy_whose_optimizer_has_no_hooks_is_refused(tmp_path: Path) -> None:
    net = Net()

    class Engine(Trainer):
        optimizers = (object(),)  # as DeepSpeed's, which is no torch optimizer

    callback = StabkitCallback(tmp_path)
    trainer = Engine(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"object of the strategy SingleDevice\w+ .* ddp, FSDP2"):
        callback.on_train_start(trainer, net)


def test_without_lightning_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "stabkit.integrations.lightning")
    with pytest.raises(ImportError, match=r"pip install 'stabkit\[lightning\]'"):
        importlib.import_module("stabkit.integrations.lightning")


def test_the_first_of_two_processes_writes_and_gradients_are_averaged(tmp_path: Path) -> None:
    code = f"""
import torch
from tests.integrations.test_lightning import Net, StabkitCallback, fit

class Kept(Net):
    def on_train_end(self):
        torch.save([self.seen, self.losses], f"{tmp_path}/{{self.global_rank}}.pt")

fit(Kept(), StabkitCallback("{tmp_path}/run"), strategy="ddp_fork", devices=2)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first[0] == second[0], "the processes had other gradients"
    assert first[1] != second[1], "the processes had the same batches"
    assert_recorded(tmp_path / "run", first[0], LAYERS)
    assert stabkit.open_run(tmp_path / "run").scalar("loss").tolist() == first[1]


class Logged(LightningModule):
    """Logs what `stabkit convert` reads, and keeps the gradients that it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        self.seen: list[list[Tensor]] = []

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        loss = self.net(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, _: int) -> None:
        self.log("val_acc", 0.25 + 0.1 * self.current_epoch)

    def on_before_optimizer_step(self, _: Any) -> None:
        self.log_dict(grad_norm(self, 2))
        self.seen.append([p.grad.clone() for p in self.parameters() if p.grad is not None])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_what_lightning_itself_logs_is_converted(tmp_path: Path) -> None:
    net = Logged()
    batches = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)
    trainer = Trainer(
        max_epochs=3, logger=CSVLogger(tmp_path, name="logs"), log_every_n_steps=1,
        accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, batches, batches)
    run = converted(tmp_path / "logs", tmp_path / "out")
    signals = run.signals()
    assert signals["layer"].unique().tolist() == ["net.0", "net.1"]
    assert len(net.seen) == 12
    for step, grads in enumerate(net.seen):
        norms = [torch.cat([g.ravel() for g in grads[i : i + 2]]).norm().item() for i in (0, 2)]
        # torch adds squares in float32, four and more of them: a few units in the last place
        found = signals[signals["step"] == step]["grad_norm"]
        np.testing.assert_allclose(found, norms, rtol=1e-6)
    assert len(run.scalar("loss_step")) == 12
    assert len(run.scalar("loss_epoch")) == 3
    assert len(run.scalar("grad_2.0_norm_total")) == 12
    np.testing.assert_allclose(run.evals("val_acc")["value"], [0.25, 0.35, 0.45], rtol=1e-6)
