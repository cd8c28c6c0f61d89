"""Lightning 2: a callback that records what the Trainer trains."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stabkit.integrations.settings import (
    numbered,
    of_optimizer,
    of_scheduler,
    with_settings,
)
from stabkit.monitor.monitor import Monitor

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

OF_TRAINER = (
    "max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val",
    "gradient_clip_algorithm", "precision", "world_size",
)  # fmt: skip


def _both_names() -> type:
    """Return a subclass of each installed package's Callback: a Trainer accepts only its own."""
    found: list[type] = []
    failed: ImportError | None = None
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found.append(import_module(name).Callback)
        except ImportError as error:
            failed = failed or error
    if not found:
        raise ImportError(
            "stabkit.integrations.lightning needs Lightning 2: pip install 'stabkit[lightning]'"
        ) from failed
    return type("Callback", tuple(found), {})


if not TYPE_CHECKING:
    Callback = _both_names()


class StabkitCallback(Callback):  # type: ignore[misc]
    """Records gradients, parameters and loss of every step under `folder`.

        trainer = Trainer(callbacks=[StabkitCallback("runs/mine")])

    `options` are those of `stabkit.Monitor`. Gradients are read before `gradient_clip_val` applies
    and, in half precision, without the scale; in manual optimization as `optimizer.step()` finds
    them. `loss` is the loss that the step's gradient belongs to: with `accumulate_grad_batches`
    the mean over its batches. A fit with `ckpt_path` goes on in the folder at the checkpoint's
    step. A checkpoint holds nothing of this callback. The Trainer's settings, those of optimizers
    and schedulers, and the module's `hparams` go into the run's settings; what `config` sets comes
    before them.

    `monitor` is the Monitor while a fit runs, for `log`, `log_eval` and `on`.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.monitor: Monitor | None = None
        self._loss: Tensor | None = None
        self._stepped = 0
        self._measured = -1

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        # Not in on_fit_start: a checkpoint and its optimizers are restored after that.
        optimizers = trainer.optimizers
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(
                    f"StabkitCallback: {type(optimizer).__name__} of the strategy "
                    f"{type(trainer.strategy).__name__} is no torch optimizer, its steps cannot be "
                    "seen; strategies that can be recorded: single device, ddp, FSDP2"
                )
        self._stepped, self._measured = trainer.global_step, -1
        options = self.options
        if self._stepped > 0:
            # Lightning counts the steps of all optimizers, a Monitor the rounds of them
            options = {"first_step": self._stepped // len(optimizers)} | options
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            options = {"scaler": scaler} | options
        steps_of = optimizers[0] if len(optimizers) == 1 else optimizers
        options = with_settings(self.folder, options, _settings(trainer, pl_module))
        self.monitor = Monitor(pl_module, steps_of, self.folder, **options)

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "LightningModule", optimizer: torch.optim.Optimizer
    ) -> None:
        # In manual optimization the gradients are clipped by now, and those of other optimizers are
        # not complete. The Monitor's own hooks are in the right place there.
        if self.monitor is None or not pl_module.automatic_optimization:
            return
        if self._measured != trainer.global_step:  # L-BFGS comes here several times a step
            self._measured = trainer.global_step
            self.monitor.before_clipping()

    def on_train_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.monitor is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):  # a part of the mean, if gradients are accumulated
            self._loss = loss if self._loss is None else self._loss + loss
        if trainer.global_step != self._stepped:
            self._stepped = trainer.global_step
            if self._loss is not None:
                self.monitor.log(loss=self._loss)
            self._loss = None
        if self.monitor.should_stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._close()

    def on_exception(
        self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException
    ) -> None:
        self._close(exception)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        self._close()

    def _close(self, error: BaseException | None = None) -> None:
        monitor, self.monitor, self._loss = self.monitor, None, None
        if monitor is not None:
            monitor.__exit__(None if error is None else type(error), error, None)


def _settings(trainer: "Trainer", module: "LightningModule") -> dict[str, Any]:
    """Return what the fit is trained with. The module's own come before the Trainer's."""
    return {
        **{name: getattr(trainer, name, None) for name in OF_TRAINER},
        "batch_size": getattr(trainer.train_dataloader, "batch_size", None),
        "trainer_seed": _seed(),
        **numbered("optimizer", map(of_optimizer, trainer.optimizers)),
        **numbered("scheduler", (of_scheduler(c.scheduler) for c in trainer.lr_scheduler_configs)),
        **module.hparams,
    }


def _seed() -> int | None:
    """Return the seed that was given to `seed_everything`, which keeps it in this variable."""
    seed = os.environ.get("PL_GLOBAL_SEED", "")
    return int(seed) if seed.isdigit() else None
