"""The Monitor as a subject: the basic level, and each further level with it."""

from typing import Any

from overhead_subject import Subject
from torch import Tensor

import stabkit
from stabkit.monitor.layers import group_layers


class Stabkit(Subject):
    """`Monitor(model, optimizer, folder)` and `log(loss=loss)`."""

    norms = True
    hooked = True

    def attach(self) -> None:
        training = self.training
        given = self.options()
        self.monitor = stabkit.Monitor(
            training.model, training.optimizer, self.folder, flush_every=self.every, **given
        )

    def options(self) -> dict[str, Any]:
        return {}

    def after_step(self, loss: Tensor, step: int) -> None:
        self.monitor.log(loss=loss)

    def close(self) -> None:
        self.monitor.close()

    def expected(self, steps: int) -> int:
        layers, index = group_layers([name for name, _ in self.training.model.named_parameters()])
        named = self.training.model.named_parameters()
        used = {layers[i] for i, (_, p) in zip(index, named, strict=True) if p.grad is not None}
        return steps * (len(used) + 1)

    def recorded(self) -> int:
        """Gradient norms and losses; there are other columns beside them."""
        run = stabkit.open_run(self.folder)
        return int(run.signals()["grad_norm"].count()) + len(run.scalar("loss"))


STABKIT: dict[str, type[Subject]] = {"stabkit": Stabkit}
