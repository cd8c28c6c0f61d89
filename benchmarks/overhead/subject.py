"""Define the interface of what is added to a training: its calls, and what it must record."""

import importlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.lib.trainings import Training


class Unavailable(Exception):
    """A subject cannot be measured; the message goes into the table."""


def need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        known = missing.split(".")[0] == module.split(".")[0]
        why = f"{package} is not installed" if known else f"{package} cannot be imported: {error}"
        raise Unavailable(why) from None


class Subject:
    """Add nothing to a training. Other subjects override what they need.

    `every` is the number of steps between two writes, if that can be chosen.
    """

    hooked = False  # whether it must put hooks on the model or the optimizer, and they must fire
    micro = 1  # micro-batches in a step

    def __init__(self, training: Training, folder: Path, every: int) -> None:
        self.training, self.folder, self.every = training, folder, every

    def attach(self) -> None: ...

    def loss(self, step: int) -> Tensor:
        return self.training.loss(step)

    def backward(self, loss: Tensor, step: int) -> AbstractContextManager[Any]:
        """Return a context for the backward pass."""
        return nullcontext()

    def after_micro_batch(self) -> None: ...

    def after_backward(self, loss: Tensor, step: int) -> None: ...

    def after_step(self, loss: Tensor, step: int) -> None: ...

    def close(self) -> None: ...

    def expected(self, steps: int) -> int:
        """Return how many values `steps` steps must give: norms, or histograms, and the loss."""
        return 0

    def recorded(self) -> int:
        """Return how many of these values are on disk after `close`."""
        return 0

    def values(self) -> int:
        """Return how many values are on disk, including those that `expected` does not count."""
        return self.recorded()

    def written(self) -> int:
        """Return the bytes on disk after `close`."""
        files = [p for p in self.folder.rglob("*") if p.is_file() and not p.is_symlink()]
        return sum(p.stat().st_size for p in files)

    def with_gradient(self) -> list[str]:
        named = self.training.model.named_parameters()
        return [name for name, p in named if p.grad is not None]
