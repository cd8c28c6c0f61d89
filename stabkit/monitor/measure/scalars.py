"""Series of the run, such as the loss: values that wait for the end of the interval."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from stabkit.monitor.measure.host_copy import HostCopy, start_copy

Series = tuple[str, NDArray[np.int64], HostCopy | NDArray[np.float64]]


class Scalars:
    """Keeps at most one value for each step and name.

    The last value wins, and a logged value wins over one that the Monitor adds by itself. Tensors
    are copied, never waited for.
    """

    def __init__(self, beta2: float | None = None) -> None:
        """`beta2`: the last one that was recorded before a resume."""
        self.logged: set[str] = set()  # every name that the loop logged
        self._told: dict[str, dict[int, Tensor | float]] = {}
        self._own: dict[str, dict[int, Tensor | float]] = {}
        self._beta2: dict[int, Any] = {} if beta2 is None else {0: beta2}

    def log(self, step: int, name: str, value: Tensor | float) -> None:
        """Keep a value that the loop logged.

        Raises ValueError or TypeError for what is not a single number.
        """
        name.encode()  # raises now for a name that no file can hold, not while writing
        self._told.setdefault(name, {})[step] = _kept(name, value)
        self.logged.add(name)

    def add(self, step: int, name: str, value: Tensor | float) -> None:
        """Keep a value of the Monitor's own."""
        self._own.setdefault(name, {})[step] = _kept(name, value)

    def of_optimizers(self, step: int, optimizers: Sequence[Optimizer]) -> None:
        """Add `lr` of the first group, `lr.1`, … of others, and every `beta2` that changed."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for i, group in enumerate(groups):
            lr = group.get("lr")
            if lr is not None and (i == 0 or lr is not groups[0].get("lr")):
                if i and _is_same(lr, groups[0].get("lr")):
                    continue
                self.add(step, f"lr.{i}" if i else "lr", lr)
        self._of_betas(step, [group.get("betas") or () for group in groups])

    def _of_betas(self, step: int, betas: Sequence[Sequence[Any]]) -> None:
        """Add every beta2 that changed; `beta2` is that of the first group that has one."""
        known = [(i, pair[1]) for i, pair in enumerate(betas) if len(pair) > 1]
        for i, beta2 in known:
            number = 0 if i == known[0][0] else i
            if number and number not in self._beta2 and _is_same(beta2, known[0][1]):
                continue
            before = self._beta2.get(number)
            if beta2 is not before and beta2 != before:
                self._beta2[number] = beta2
                self.add(step, f"beta2.{number}" if number else "beta2", beta2)

    def __bool__(self) -> bool:
        return bool(self._told or self._own)

    def take(self) -> list[Series]:
        """Begin to copy all series since the last call to the host."""
        # A value that was logged comes before one of our own, at its step only.
        whole = {
            name: dict(sorted({**self._own.get(name, {}), **self._told.get(name, {})}.items()))
            for name in {**self._own, **self._told}
        }
        self._told, self._own = {}, {}
        return [
            (name, np.array(list(series), dtype=np.int64), _copy(list(series.values())))
            for name, series in whole.items()
        ]


def _is_same(one: Any, first: Any) -> bool:
    """Return whether two options are equal; False for tensors, whose answer takes a wait."""
    return not isinstance(one, Tensor) and not isinstance(first, Tensor) and bool(one == first)


def read(series: Sequence[Series]) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return steps and values of each series; wait for copies that are still under way."""
    return {
        name: (steps, values.read() if isinstance(values, HostCopy) else values)
        for name, steps, values in series
    }


def _kept(name: str, value: Any) -> Tensor | float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"log: {name} has shape {list(value.shape)}; give a single number")
        if value.is_meta or value.is_complex():
            raise ValueError(f"log: {name} is {value.dtype} on {value.device}; give a real number")
        # a copy: a captured graph or an in-place update may overwrite the original
        return value.detach().to(torch.float64, copy=True).reshape(())
    if isinstance(value, str | bytes):
        raise TypeError(f"log: {name} is text; give a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"log: {name} is of type {kind}; give a number") from None


def _copy(values: list[Tensor | float]) -> HostCopy | NDArray[np.float64]:
    devices = [v.device for v in values if isinstance(v, Tensor)]
    if not devices:
        return np.array(values, dtype=np.float64)
    # stacked on the device: reading there would wait for everything that is queued
    device = next((d for d in devices if d.type != "cpu"), devices[0])
    return start_copy(torch.stack([_on(device, value) for value in values]))


def _on(device: torch.device, value: Tensor | float) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return torch.full((), value, dtype=torch.float64, device=device)
