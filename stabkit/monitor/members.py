"""Which parameters are measured, and with which optimizer's step."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.blocks import is_sharded
from stabkit.printing import counted, first_of


def check_same_model(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError when the optimizers train something else, such as a copy of the model."""
    inside = {id(p) for p in model.parameters()}
    if not any(id(p) in inside for o in optimizers for g in o.param_groups for p in g["params"]):
        raise ValueError(
            "Monitor: none of the optimizer's parameters is one of the model; make the optimizer "
            "of this model (after wrapping or moving it), or pass the model that it trains"
        )


def measurable(
    model: nn.Module, layer_of: Callable[[str], str | None] | None
) -> list[tuple[str, Tensor]]:
    """Return names and parameters to which `layer_of` gives a layer; a shared one once.

    Raises ValueError when there are none, or when they cannot be measured together.
    """
    named: list[tuple[str, Tensor]] = [
        (name, p) for name, p in model.named_parameters() if layer_of is None or layer_of(name)
    ]
    if not named:
        raise ValueError("Monitor: the model has no parameters to measure")
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError(
            "Monitor: FullyShardedDataParallel hides which part of a parameter a process holds; "
            "shard the model with torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    for name, p in named:
        if p.is_complex():
            raise ValueError(f"Monitor: {name} is complex; leave it out with layer_of")
        if nn.parameter.is_lazy(p):
            raise ValueError(f"Monitor: {name} has no shape yet; run one batch through the model")
        if p.is_meta:
            raise ValueError(f"Monitor: {name} is on the meta device; attach once it has values")
    devices = {str(p.device): name for name, p in named}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(
            f"Monitor: the parameters are on several devices ({where}); choose those of one with "
            "layer_of, which may return None"
        )
    return named


class Members:
    """Knows the indices of the parameters that each optimizer updates.

    Parameters of no optimizer, such as a frozen layer, go with the first one. Groups may be added
    and modules replaced at any time: a parameter that left the model has no index. (In a sharded
    model that cannot be seen, because FSDP2 itself replaces its parameters in each step.)
    """

    def __init__(
        self,
        model: nn.Module,
        named: Sequence[tuple[str, Tensor]],
        optimizers: Sequence[Optimizer],
        layer_of: Callable[[str], str | None] | None,
    ) -> None:
        self._model, self._named, self._layer_of = model, list(named), layer_of
        self._optimizers = optimizers
        self._sharded = any(is_sharded(p) for _, p in named)
        self._told: set[str] = set()
        self._of: dict[int, list[int]] = {}
        self._written: dict[int, tuple[Tensor, int]] = {}
        self._look()

    def of(self, optimizer: Optimizer) -> list[int]:
        """Return the indices of the parameters that go with an optimizer."""
        return self._of[id(optimizer)]

    def left_out(self) -> list[str]:
        """Return in words whose parameters are not in the model, and so are not recorded."""
        inside = {id(p) for p in self._model.parameters()}
        said = self._twice()
        for number, one in enumerate(self._optimizers):
            owned = [id(p) for group in one.param_groups for p in group["params"]]
            if outside := [p for p in owned if p not in inside]:
                name = f"{type(one).__name__}" + f" (number {number})" * (len(self._optimizers) > 1)
                said.append(
                    f"{name}: {len(outside)} of its {len(owned)} parameters are not in the model "
                    "and are not recorded; give the Monitor all modules that it trains, as one: "
                    "torch.nn.ModuleDict({...})"
                )
        return said

    def _twice(self) -> list[str]:
        """Say which optimizers have parameters that another one before them has too."""
        said, owned = [], set[int]()
        for one in self._optimizers:
            theirs = {id(p) for group in one.param_groups for p in group["params"]}
            if both := theirs & owned:
                said.append(
                    f"{type(one).__name__} has {counted(len(both), 'parameter')} of an optimizer "
                    "before it in the list, with whose steps alone they are recorded; give a "
                    "Monitor optimizers that share none, and make another, with first_step, when "
                    "the training goes on with other ones"
                )
            owned |= theirs
        return said

    def shared_with(self, optimizer: Optimizer) -> int:
        """Return how many of the parameters a foreign optimizer updates."""
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return sum(id(p) in theirs for p in self.parameters)

    def changes(self) -> list[str]:
        """Look at the model and the optimizers again; return what changed, in words, each once."""
        if self._now() == self._seen:
            return []
        before = {i for numbers in self._of.values() for i in numbers}
        self._look()
        gone = before - {i for numbers in self._of.values() for i in numbers}
        known = {id(p) for _, p in self._named}
        found = [(name, p) for name, p in self._model.named_parameters() if id(p) not in known]
        new = [name for name, _ in found if self._layer_of is None or self._layer_of(name)]
        told = {
            "no longer in the model, and recorded as null from here on": [
                self._named[i][0] for i in sorted(gone)
            ],
            "new in the model, and not recorded: for that close this Monitor and make another, "
            "with first_step": [] if self._sharded else new,
        }
        said = []
        for what, names in told.items():
            fresh = [name for name in names if f"{name} {what}" not in self._told]
            self._told.update(f"{name} {what}" for name in fresh)
            if fresh:
                said.append(f"{first_of(fresh, 4)}: {what}")
        return said

    def stale(self) -> set[int]:
        """Return the parameters of no optimizer whose gradient is of an earlier step.

        Nobody clears such a gradient. It is stale if no backward pass has touched it since the
        last call.
        """
        found = set()
        for i in self._unowned:
            parameter = self._named[i][1]
            grad = parameter.grad
            if grad is None:
                continue
            before, version = self._written.get(i), grad._version
            is_same = before is not None and before[0] is grad and before[1] == version
            if is_same or not parameter.requires_grad:
                found.add(i)
            self._written[i] = grad, version
        return found

    def _now(self) -> list[int]:
        """Return ids that change when a module, a parameter or a group does, in a few µs."""
        groups = (group["params"] for one in self._optimizers for group in one.param_groups)
        return [*map(id, chain(chain.from_iterable(map(dict.values, self._tables)), *groups))]

    def _look(self) -> None:
        self._modules = [] if self._sharded else list(self._model.modules())
        # Keep what is in the tables now alive: the id of a freed object could come again.
        tables = [table for m in self._modules for table in (m._modules, m._parameters)]
        self._tables: list[dict[str, Any]] = [table for table in tables if table]
        self._held = [*chain.from_iterable(map(dict.values, self._tables))]
        self._seen = self._now()
        inside = {id(p) for p in self._model.parameters()}
        numbers = [i for i, (_, p) in enumerate(self._named) if self._sharded or id(p) in inside]
        self.parameters = [self._named[i][1] for i in numbers]
        number = {id(self._named[i][1]): i for i in numbers}
        rest = dict.fromkeys(numbers)
        for one in self._optimizers:
            owned = [number.get(id(p)) for g in one.param_groups for p in g["params"]]
            self._of[id(one)] = [i for i in dict.fromkeys(owned) if i in rest]
            for i in self._of[id(one)]:
                del rest[i]
        self._unowned = list(rest)
        first = self._of[id(self._optimizers[0])]
        self._of[id(self._optimizers[0])] = sorted([*first, *rest])
