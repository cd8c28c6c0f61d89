"""A loop run twice, with a Monitor and without: what is recorded, and that nothing else changes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import stabkit
from tests.monitor.expected import Expected


class Net(nn.Module):
    """Tensors of many shapes: none, scalar, fewer and more than a row of 256, frozen, unused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 20)
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.blocks = nn.ModuleList([nn.Linear(20, 20), nn.Linear(20, 20)])
        self.frozen = nn.Linear(20, 20, bias=False).requires_grad_(False)
        self.empty = nn.ParameterDict({"weight": torch.zeros(4, 0)})
        self.head = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + block(x).relu()
        out: Tensor = self.head(self.frozen(x)) * self.temperature
        return out


def layer_of(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]


ORDER = ["stem", "temperature", "blocks.0", "blocks.1", "frozen", "empty", "head"]


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int) -> Tensor:
    out: Tensor = (model(batch(step)) - 1).square().mean()
    return out


class Nothing:
    """Takes any call."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Watch:
    """Given to a loop, which calls `attach` and gets a Monitor and an Expected, or nothings."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.monitor: Any = Nothing()
        self.expected: Any = Nothing()

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        layer: Callable[[str], str | None] = layer_of,
        order: Sequence[str] | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        if self.folder is not None:
            optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
            # intervals of 3 steps: loops of more than 6 go round
            self.monitor = stabkit.Monitor(
                model, optimizer, self.folder, flush_every=3, **options, full_every=1
            )
            self.expected = Expected(model, optimizers, layer, order)
        return self.monitor, self.expected


Loop = Callable[[Watch], tuple[list[float], nn.Module]]


def twins(folder: Path, loop: Loop, checked: bool = True) -> Expected:
    """Check that what is recorded is what was expected, and that nothing was disturbed.

    Losses, weights, gradients and the random state are to the bit those of the loop without a
    Monitor.
    """
    watch = Watch(folder)
    with_it = _outcome(loop, watch)
    watch.monitor.close()
    torch.testing.assert_close(with_it, _outcome(loop, Watch(None)), rtol=0, atol=0, equal_nan=True)
    kinds = {event["kind"] for event in stabkit.open_run(folder).log_entries()}
    assert kinds <= {"nonfinite", "param_groups"}
    expected: Expected = watch.expected
    if checked:
        expected.check(folder)
    return expected


def _outcome(loop: Loop, watch: Watch) -> dict[str, Any]:
    torch.manual_seed(0)
    losses, model = loop(watch)
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "weights": list(model.state_dict().values()),
        "gradients": [_dense(p.grad) for p in model.parameters()],
        "random": torch.get_rng_state(),
    }


def _dense(gradient: Tensor | None) -> Tensor:
    return torch.empty(0) if gradient is None else gradient.to_dense()
