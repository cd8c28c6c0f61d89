"""What is added to a training, how it is fed, and what it must have recorded: the interface."""

import importlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.lib.trainings import Training


class Unavailable(Exception):
    """Why a subject is not measured; its words go into the table."""


def need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        known = missing.split(".")[0] == module.split(".")[0]
        why = f"{package} is not installed" if known else f"{package} cannot be imported: {error}"
        raise Unavailable(why) from None


class Subject:
    """Nothing: the step as it is. Others override what they need.

    `every`: steps between two writes, where there is a choice.
    """

    hooked = False  # it puts hooks on the model or the optimizer: some must be found, and fire
    micro = 1  # micro-batches a step, of which it is told

    def __init__(self, training: Training, folder: Path, every: int) -> None:
        self.training, self.folder, self.every = training, folder, every

    def attach(self) -> None: ...

    def loss(self, step: int) -> Tensor:
        return self.training.loss(step)

    def backward(self, loss: Tensor, step: int) -> AbstractContextManager[Any]:
        """Around the backward pass."""
        return nullcontext()

    def after_micro_batch(self) -> None: ...

    def after_backward(self, loss: Tensor, step: int) -> None: ...

    def after_step(self, loss: Tensor, step: int) -> None: ...

    def close(self) -> None: ...

    def expected(self, steps: int) -> int:
        """Values that `steps` steps must give: norms, or histograms, and the loss."""
        return 0

    def recorded(self) -> int:
        """Those found on disk after `close`."""
        return 0

    def values(self) -> int:
        """All values found there, where there are more than `expected` speaks of."""
        return self.recorded()

    def written(self) -> int:
        """Bytes on disk after `close`."""
        files = [p for p in self.folder.rglob("*") if p.is_file() and not p.is_symlink()]
        return sum(p.stat().st_size for p in files)

    def with_gradient(self) -> list[str]:
        named = self.training.model.named_parameters()
        return [name for name, p in named if p.grad is not None]
