"""Which parameters are measured, and with which optimizer's step."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer


def listed(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Raises ValueError for none, or one that is there twice; TypeError for what has no hooks."""
    optimizers = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    if not optimizers or len({id(one) for one in optimizers}) < len(optimizers):
        raise ValueError("Monitor: give an optimizer, or a list of different ones")
    for one in optimizers:
        # a wrapper may have the method and not what it needs
        if not hasattr(one, "_optimizer_step_pre_hooks"):
            kind = type(one).__name__
            raise TypeError(
                f"Monitor: {kind} has no step hooks; pass the torch.optim.Optimizer inside it"
            )
    return optimizers


def check_same_model(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Raises ValueError when the optimizers train something else, as a copy of the model."""
    inside = {id(p) for p in model.parameters()}
    if not any(id(p) in inside for o in optimizers for g in o.param_groups for p in g["params"]):
        raise ValueError(
            "Monitor: none of the optimizer's parameters is one of the model; make the optimizer "
            "of this model (after wrapping or moving it), or pass the model that it trains"
        )


def measurable(
    model: nn.Module, layer_of: Callable[[str], str | None] | None
) -> list[tuple[str, Tensor]]:
    """Names and parameters of which `layer_of` makes a layer; a shared one once.

    Raises ValueError when there are none, or what cannot be measured together.
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
    """The numbers of the parameters that each optimizer updates; groups may be added later.

    What no optimizer has, such as a frozen layer, goes with the first one.
    """

    def __init__(self, parameters: Sequence[Tensor], optimizers: Sequence[Optimizer]) -> None:
        self._number = {id(p): i for i, p in enumerate(parameters)}
        self._optimizers = optimizers
        self._sizes: tuple[int, ...] = ()
        self._of: dict[int, list[int]] = {}

    def of(self, optimizer: Optimizer) -> list[int]:
        sizes = tuple(len(group["params"]) for o in self._optimizers for group in o.param_groups)
        if sizes != self._sizes:
            self._sizes = sizes
            rest = dict.fromkeys(self._number.values())
            for one in self._optimizers:
                owned = [self._number.get(id(p)) for g in one.param_groups for p in g["params"]]
                self._of[id(one)] = [i for i in dict.fromkeys(owned) if i in rest]
                for i in self._of[id(one)]:
                    del rest[i]
            first = self._of[id(self._optimizers[0])]
            self._of[id(self._optimizers[0])] = sorted([*first, *rest])
        return self._of[id(optimizer)]
