"""Hugging Face transformers: a callback, and a context that sees what a callback cannot."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stabkit.integrations.calls import calling_first, replaced
from stabkit.integrations.settings import of_optimizer, with_settings
from stabkit.monitor.monitor import Monitor

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import TrainerCallback, TrainingArguments
except ImportError as error:
    raise ImportError(
        "stabkit.integrations.huggingface needs transformers and accelerate: "
        "pip install 'stabkit[huggingface]'"
    ) from error

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState

CLIPPED = (
    "StabkitCallback: max_grad_norm is {norm:g}, and a callback is only called after gradients are "
    "clipped: those recorded are clipped. To record them as they were: "
    "`with stabkit.integrations.huggingface.watch(trainer, folder): trainer.train()`; "
    "not to clip: max_grad_norm=0"
)

# What changes the training; the optimizer tells its own. The others say where and how it runs.
ARGUMENTS = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "world_size", "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "warmup_ratio", "bf16", "fp16", "tf32", "gradient_checkpointing", "torch_compile",
    "label_smoothing_factor", "neftune_noise_alpha", "train_sampling_strategy", "group_by_length",
    "dataloader_drop_last", "data_seed",
)  # fmt: skip


class StabkitCallback(TrainerCallback):  # type: ignore[misc]
    """Records gradients and parameters of every step under `folder`.

        trainer = Trainer(..., callbacks=[StabkitCallback("runs/mine")])

    `options` are those of `stabkit.Monitor`. A Trainer calls its callbacks after clipping, shows
    them the loss only when it logs (the mean since the last time), and does not tell them of an
    exception. Prefer `watch`, which has none of these limits. Training that resumes from a
    checkpoint goes on in the folder at the checkpoint's step. The Trainer's arguments and the
    optimizer's options go into the run's settings; what `config` sets comes before them.

    `monitor` is the Monitor while `train` runs, for `log`, `log_eval` and `on`.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.monitor: Monitor | None = None
        self.watching = False
        self._loss: Tensor | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        self.close()
        options = self.options
        if state.global_step > 0:
            options = {"first_step": state.global_step} | options
        optimizer = kwargs["optimizer"]
        scaler = getattr(optimizer, "scaler", None)  # accelerate's wrapper has it
        if scaler is not None:
            options = {"scaler": scaler} | options
        if args.max_grad_norm and not self.watching:
            warnings.warn(CLIPPED.format(norm=args.max_grad_norm), stacklevel=2)
        inner = _innermost(optimizer)
        options = with_settings(
            self.folder, options, {**_settings(args), "optimizer": of_optimizer(inner)}
        )
        self.monitor = Monitor(kwargs["model"], inner, self.folder, **options)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        if self.monitor is None:
            return
        if self._loss is not None:
            self.monitor.log(loss=self._loss)
            self._loss = None
        if self.monitor.should_stop:
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.monitor is not None and not self.watching and logs and "loss" in logs:
            self.monitor.log(loss=float(logs["loss"]))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: "TrainerState",
        control: "TrainerControl",
        **kwargs: Any,
    ) -> None:
        self.close()

    def before_clipping(self) -> None:
        if self.monitor is not None:
            self.monitor.before_clipping()

    def add_loss(self, loss: Any) -> None:
        """Add the loss of a micro-batch, divided by their number, as `training_step` returns it."""
        if self.monitor is not None and isinstance(loss, Tensor):
            self._loss = loss if self._loss is None else self._loss + loss

    def close(self, error: BaseException | None = None) -> None:
        """Close the Monitor; `error` is what ended the training, if something did."""
        monitor, self.monitor, self._loss = self.monitor, None, None
        if monitor is not None:
            monitor.__exit__(None if error is None else type(error), error, None)


@contextmanager
def watch(trainer: "Trainer", folder: str | Path, **options: Any) -> Iterator[StabkitCallback]:
    """Record what `trainer.train()` does within the context, with gradients before clipping.

        with watch(trainer, "runs/mine"):
            trainer.train()

    Meanwhile the clipping call of this Trainer's accelerator and its own `training_step` are
    wrapped. Afterwards they are as before, also after an exception.
    """
    callback = StabkitCallback(folder, **options)
    callback.watching = True
    with ExitStack() as undo:
        trainer.add_callback(callback)
        undo.callback(trainer.remove_callback, callback)
        undo.push(lambda _kind, error, _trace: callback.close(error))
        undo.enter_context(
            calling_first(callback.before_clipping, trainer.accelerator, "clip_grad_norm_")
        )
        undo.enter_context(
            replaced(trainer, "training_step", _passing_result_to(callback.add_loss))
        )
        yield callback


def _passing_result_to(
    told: Callable[[Any], None],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            told(result)
            return result

        return called

    return wrap


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer within accelerate's wrappers."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"StabkitCallback: {type(optimizer).__name__} is no torch optimizer, its steps cannot "
            "be seen"
        )
    return optimizer


def _settings(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments that change the training, with those that a subclass adds."""
    known = {field.name for field in fields(TrainingArguments)}
    added = [field.name for field in fields(args) if field.name not in known]
    named = {name: getattr(args, name, None) for name in (*ARGUMENTS, *added)}
    return {**named, "trainer_seed": args.seed}
