"""The optimizers within those that frameworks and methods wrap around them.

There are two kinds. A *shell* only passes calls on (Lightning Fabric, accelerate, timm's
Lookahead): the hooks of its own `step` never run, so the Monitor takes the optimizer inside. An
*outer* optimizer steps by itself and holds another for a part of its step (SAM, other Lookaheads):
the Monitor watches both, because some loops never call the outer step.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# the names under which shells keep their optimizer
NAMES = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer")


def listed(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Return the optimizers as a list, without shells.

    Raises ValueError for none, or for one that is there twice, TypeError for one without hooks.
    """
    optimizers = [innermost(one) for one in as_list(optimizer)]
    if not optimizers or len({id(one) for one in optimizers}) < len(optimizers):
        raise ValueError("Monitor: give an optimizer, or a list of different ones")
    return optimizers


def as_list(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Return what was given as a list; an optimizer is not iterable."""
    return list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]


def innermost(optimizer: Any) -> Optimizer:
    """Return the optimizer whose step runs hooks: this one, or the one in its shells.

    Raises TypeError when there is none.
    """
    found = next((one for one in opened(optimizer) if _runs_hooks(one)), None)
    if found is None:
        raise TypeError(_refusal(optimizer))
    return found


def opened(optimizer: Any) -> Iterator[Optimizer]:
    """Yield what was given, and what is in it, and in that, as shells name it."""
    one = optimizer
    while one is not None:
        yield one
        inside = [getattr(one, name, None) for name in NAMES]
        one = next((inner for inner in inside if isinstance(inner, Optimizer)), None)


def held_by(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that an outer one holds and lets step for it, also through others."""
    found: list[Optimizer] = []
    waiting = [optimizer]
    while waiting:
        values = vars(waiting.pop()).values()
        new = [v for v in values if isinstance(v, Optimizer) and _runs_hooks(v)]
        new = [v for v in new if v is not optimizer and not any(v is one for one in found)]
        found += new
        waiting += new
    return found


def scaler_within(optimizer: Optimizer | Sequence[Optimizer]) -> "torch.amp.GradScaler | None":
    """Return the GradScaler by which accelerate or Fabric steps the optimizer in its shell."""
    for one in as_list(optimizer):
        if not _runs_hooks(one):
            precision = getattr(getattr(one, "_strategy", None), "precision", None)
            for holder in (one, precision):
                scaler = getattr(holder, "scaler", None)
                if isinstance(scaler, torch.amp.GradScaler):
                    return scaler
    return None


def checked(scaler: Any) -> "torch.amp.GradScaler | None":
    """Return the scaler. Raises TypeError for a shell around one, such as timm's NativeScaler."""
    methods = ("is_enabled", "unscale_", "step", "update")
    if scaler is None or all(hasattr(scaler, name) for name in methods):
        return scaler  # type: ignore[no-any-return]
    kind, held = type(scaler).__name__, getattr(scaler, "__dict__", {})
    names = [name for name, value in held.items() if isinstance(value, torch.amp.GradScaler)]
    inside = f"scaler.{names[0]}" if names else "the GradScaler that it uses"
    raise TypeError(f"Monitor: {kind} is no torch.amp.GradScaler; pass scaler={inside}")


def _runs_hooks(optimizer: Any) -> bool:
    """Return whether `optimizer.step()` runs hooks that are registered on this very object.

    torch marks the `step` of a class that does. A shell may have the class and the methods of what
    it holds, and yet another `step`.
    """
    marked = getattr(getattr(type(optimizer), "step", None), "hooked", False)
    return bool(marked) and hasattr(optimizer, "_optimizer_step_pre_hooks")


def _refusal(optimizer: Any) -> str:
    kind, held = type(optimizer).__name__, getattr(optimizer, "__dict__", {})
    names = [name for name, value in held.items() if isinstance(value, Optimizer)]
    if isinstance(optimizer, nn.Module):
        return (
            f"Monitor: {kind} is a model, where the optimizer goes: Monitor(model, optimizer, ...)"
        )
    if names:
        return f"Monitor: {kind} has no step hooks; pass optimizer.{names[0]}, which is inside it"
    return f"Monitor: {kind} has no step hooks; pass the torch.optim.Optimizer inside it"
