"""Define the peers, each used as its documentation says.

Each writes once an interval if that can be chosen. A peer that is not installed, or that cannot run
on a training, raises Unavailable with the reason.
"""

import contextlib
import csv
import importlib
import json
import os
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.overhead.logs import tensorboard_values, wandb_values
from benchmarks.overhead.subject import Subject, Unavailable, need
from stabkit.monitor.layers import group_layers


class Lightning(Subject):
    """`grad_norm` of Lightning's utilities into its CSV logger, each step."""

    def attach(self) -> None:
        self._grad_norm = need("lightning.pytorch.utilities", "lightning").grad_norm
        self.logger = self.make_logger()

    def make_logger(self) -> Any:
        loggers = need("lightning.pytorch.loggers", "lightning")
        return loggers.CSVLogger(self.folder, flush_logs_every_n_steps=self.every)

    def after_backward(self, loss: Tensor, step: int) -> None:
        norms = self._grad_norm(self.training.model, norm_type=2)
        self.logger.log_metrics({**norms, "loss": loss.detach()}, step)

    def close(self) -> None:
        self.logger.finalize("success")

    def expected(self, steps: int) -> int:
        return steps * (len(self.with_gradient()) + 2)  # plus the total and the loss

    def recorded(self) -> int:
        (path,) = self.folder.rglob("metrics.csv")
        with path.open() as file:
            rows = list(csv.DictReader(file))
        return sum(value != "" for row in rows for name, value in row.items() if name != "step")


class LightningTensorBoard(Lightning):
    """The same, into Lightning's TensorBoard logger."""

    def make_logger(self) -> Any:
        need("tensorboard", "tensorboard")
        return need("lightning.pytorch.loggers", "lightning").TensorBoardLogger(self.folder)

    def recorded(self) -> int:
        return tensorboard_values(self.folder)


class TensorBoard(Subject):
    """One `add_scalar` for each layer and step: the norm of the layer's gradient."""

    def attach(self) -> None:
        need("tensorboard", "tensorboard")
        self.writer = need("torch.utils.tensorboard", "tensorboard").SummaryWriter(self.folder)
        named = list(self.training.model.named_parameters())
        self.layers, index = group_layers([name for name, _ in named])
        self.groups = [
            [p for (_, p), i in zip(named, index, strict=True) if i == number]
            for number in range(len(self.layers))
        ]

    def after_backward(self, loss: Tensor, step: int) -> None:
        for layer, parameters in zip(self.layers, self.groups, strict=True):
            norms = [p.grad.norm() for p in parameters if p.grad is not None]
            if norms:
                self.writer.add_scalar(f"grad_norm/{layer}", torch.stack(norms).norm(), step)
        self.writer.add_scalar("loss", loss, step)

    def close(self) -> None:
        self.writer.close()

    def expected(self, steps: int) -> int:
        with_gradient = [any(p.grad is not None for p in group) for group in self.groups]
        return steps * (sum(with_gradient) + 1)

    def recorded(self) -> int:
        return tensorboard_values(self.folder)


class Wandb(Subject):
    """`watch(log="gradients", log_freq=1)` and `log`, offline; a histogram counts as a value."""

    hooked = True
    watched = "gradients"

    def attach(self) -> None:
        os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        wandb = need("wandb", "wandb")
        self.folder.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(console="off", x_disable_stats=True)
        where = {"project": "benchmark", "dir": str(self.folder)}
        self.run = wandb.init(mode="offline", settings=quiet, **where)
        self.run.watch(self.training.model, log=self.watched, log_freq=1)

    def after_step(self, loss: Tensor, step: int) -> None:
        self.run.log({"loss": loss})

    def close(self) -> None:
        self.run.unwatch(self.training.model)
        self.run.finish()

    def expected(self, steps: int) -> int:
        return steps * (len(self.with_gradient()) + 1)

    def recorded(self) -> int:
        (path,) = self._files()
        return wandb_values(path)

    def written(self) -> int:
        return sum(path.stat().st_size for path in self._files())  # without its own logs

    def _files(self) -> list[Path]:
        return [p for p in self.folder.rglob("*.wandb") if not p.is_symlink()]


class WandbAll(Wandb):
    """`watch(log="all", log_freq=1)`, which adds histograms of parameters."""

    watched = "all"

    def expected(self, steps: int) -> int:
        return super().expected(steps) + steps * len(list(self.training.model.parameters()))


class TrainScope(Subject):
    """`attach()`, and `step()` before the optimizer's, with default settings."""

    hooked = True

    def attach(self) -> None:
        trainscope = need("trainscope", "trainscope")
        config = need("trainscope.core.config", "trainscope").TrainScopeConfig
        given = config(run_dir=str(self.folder), run_name="run")
        self.scope = trainscope.TrainScope(
            self.training.model, self.training.optimizer, given
        ).attach()

    def after_backward(self, loss: Tensor, step: int) -> None:
        self.scope.step(loss.item(), batch_index=step)

    def close(self) -> None:
        self.scope.detach()

    def expected(self, steps: int) -> int:
        return steps * len(list(self.training.model.named_parameters()))

    def recorded(self) -> int:
        read = importlib.import_module("trainscope.io.writer").read_arrow_rows_sync
        rows = [row for path in (self.folder / "run" / "layers").iterdir() for row in read(path)]
        if not any(row["act_mean"] is not None for row in rows):
            return -1  # its forward hooks never fired
        return sum(row["grad_l2_norm"] is not None for row in rows)


class Cockpit(Subject):
    """The `economy` configuration, every quantity at every step."""

    hooked = True

    def attach(self) -> None:
        # about hooks on a first layer, whose input needs no gradient; they work
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from pkg_resources, which gives cockpit its version
            cockpit = need("cockpit", "cockpit-for-pytorch")
        backpack = need("backpack", "backpack-for-pytorch")
        quantities = self.quantities()
        if self.hooked:
            backpack.extend(self.training.model)
        self.cockpit = cockpit.Cockpit(self.trainable(), quantities)
        self._try()
        for quantity in quantities:
            quantity.output.clear()

    def trainable(self) -> list[Tensor]:
        return [p for p in self.training.model.parameters() if p.requires_grad]

    def quantities(self) -> list[Any]:
        if self.training.sample_losses is None:
            raise Unavailable("needs one loss a sample, which a contrastive batch has not")
        economy = need("cockpit.utils.configuration", "cockpit-for-pytorch").configuration
        found: list[Any] = economy("economy")
        return found

    def _try(self) -> None:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                loss = self.loss(0)
                with self.backward(loss, 0):
                    loss.backward()
            except Exception as error:
                why = f"cannot run on this model: {type(error).__name__}: {error}"
                said = [str(w.message) for w in warned if "extension for Module" in str(w.message)]
                raise Unavailable(f"{why} ({said[0]})" if said else why) from None
            finally:
                self.training.optimizer.zero_grad()

    def loss(self, step: int) -> Tensor:
        if self.training.sample_losses is None:
            return self.training.loss(step)
        self._losses = self.training.sample_losses(step)
        return self._losses.mean()

    def backward(self, loss: Tensor, step: int) -> AbstractContextManager[Any]:
        info = {"batch_size": self.training.batch, "loss": loss}
        info |= {"optimizer": self.training.optimizer, "individual_losses": self._losses}
        context: AbstractContextManager[Any] = self.cockpit(step, info=info)
        return context

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # it prints where it writes
            self.cockpit.write(str(self.folder / "log"))

    def expected(self, steps: int) -> int:
        return steps * len(self.trainable())

    def recorded(self) -> int:
        steps = json.loads((self.folder / "log.json").read_text())
        return sum(len(of_step["GradNorm"]) for of_step in steps.values())


class CockpitNorm(Cockpit):
    """Only `GradNorm` of Cockpit, which does not need BackPACK and therefore runs on a ViT."""

    hooked = False

    def quantities(self) -> list[Any]:
        grad_norm = need("cockpit.quantities", "cockpit-for-pytorch").GradNorm
        every_step = need("cockpit.utils.schedules", "cockpit-for-pytorch").linear(1)
        return [grad_norm(track_schedule=every_step)]

    def loss(self, step: int) -> Tensor:
        self._losses = None
        return self.training.loss(step)


PEERS: dict[str, type[Subject]] = {
    "lightning-csv": Lightning,
    "lightning-tensorboard": LightningTensorBoard,
    "tensorboard": TensorBoard,
    "wandb-gradients": Wandb,
    "wandb-all": WandbAll,
    "trainscope": TrainScope,
    "cockpit-economy": Cockpit,
    "cockpit-gradnorm": CockpitNorm,
}
