"""Define the Monitor as a subject: the basic level, and each further level with it."""

from typing import Any

from torch import Tensor

import stabkit
from benchmarks.overhead.subject import Subject, Unavailable
from stabkit.monitor.layers import group_layers
from stabkit.monitor.signals.signal import LEVELS, choose
from stabkit.store.schema import KEYS


class Stabkit(Subject):
    """`Monitor(model, optimizer, folder)` and `log(loss=loss)`."""

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
        run = stabkit.open_run(self.folder)
        return int(run.signals()["grad_norm"].count()) + len(run.scalar("loss"))

    def values(self) -> int:
        run = stabkit.open_run(self.folder)
        return int(run.signals().drop(columns=list(KEYS)).count().sum()) + len(run.scalars())


class OneNorm(Stabkit):
    """Only the gradient norm of each layer, the least that the peers record."""

    def options(self) -> dict[str, Any]:
        return {"signals": "grad_norm"}


class Full(Stabkit):
    """All basic signals at every step, as `stabkit train` records them."""

    def options(self) -> dict[str, Any]:
        return {"full_every": 1}


class Level(Stabkit):
    """A further level beside the basic one, with one probe an interval (50 steps)."""

    level: str

    def options(self) -> dict[str, Any]:
        if not choose(self.level, self.training.probe):
            raise Unavailable(f"this version has no signal of level {self.level}")
        levels = ["basic", self.level]
        return {"signals": levels, "probe": self.training.probe, "probe_every": self.every}

    def recorded(self) -> int:
        run = stabkit.open_run(self.folder)
        failed = [event for event in run.log_entries() if event["kind"] == "signal_failed"]
        if failed:
            raise RuntimeError(f"{failed[0]['name']} failed: {failed[0]['reason']}")
        of_layers = run.signals().drop(columns=list(KEYS)).count()
        names = {name for name, count in of_layers.items() if count}
        names |= set(run.scalars()["name"])
        silent = [
            signal.name
            for signal in choose(self.level, self.training.probe)
            if signal.name not in names
        ]
        if len(silent) == len(choose(self.level, self.training.probe)):
            raise RuntimeError(f"no value of {', '.join(silent)}")
        return super().recorded()


class Noise(Level):
    """The level that needs every micro-batch: two a step, with the subject and without."""

    micro = 2

    def options(self) -> dict[str, Any]:
        return super().options() | {"samples_per_step": self.micro * self.training.batch}

    def after_micro_batch(self) -> None:
        self.monitor.micro_batch()


STABKIT: dict[str, type[Subject]] = {
    "stabkit": Stabkit,
    "stabkit-full": Full,
    "stabkit-grad_norm": OneNorm,
}
FURTHER: dict[str, type[Subject]] = {
    f"stabkit+{level}": type(level, (Noise if level == "noise" else Level,), {"level": level})
    for level in LEVELS
    if level != "basic"
}
