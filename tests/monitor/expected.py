"""What a Monitor must record, worked out with Python's own floats, one element at a time."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit import open_run
from stabkit.store.tables import stored_table

Row = dict[str, dict[str, float | None]]  # layer -> signal -> value

COUNTS = ("grad_max", "nonfinite_count", "zero_count")
# A norm is the root of a float32 sum of squares, added up in rows of 256: each addition rounds by
# at most 2^-24 of the sum, so the norm is off by 256 * 2^-24 / 2 = 8e-6 of itself at the very most.
NORMS = 1e-5
# adam_rms divides by a float32 moment that was updated a dozen times, 3 roundings each.
RMS = 2e-5


def elements(tensor: Tensor) -> list[float]:
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().to_dense()
    return [float(x) for x in tensor.detach().double().reshape(-1).tolist()]


def norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))


class Expected:
    """Told of each step by a loop: `gradients`, `before` and `after` of each optimizer's step.

    `rows[i]` is what step i must hold. The second moments are its own, updated by Adam's formula
    from the gradients the optimizer was given.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        layer_of: Callable[[str], str | None],
        order: Sequence[str] | None = None,
    ) -> None:
        """`order`: of the layers. Not `own_moments`: those of the optimizer's state."""
        self.optimizers = optimizers
        self.named = [(layer_of(name), p) for name, p in model.named_parameters()]
        self.layers = list(order or dict.fromkeys(layer for layer, _ in self.named if layer))
        self.own_moments = True
        self.begins_when_skipped = False  # a fused optimizer makes its state nevertheless
        self.logged: dict[int, float] = {}
        self.rows: list[Row] = []
        self._sums: dict[str, dict[str, list[float]]] = {}
        self._values: dict[int, list[float]] = {}
        self._moments: dict[int, tuple[list[float], int]] = {}
        self._given: dict[int, list[float]] = {}

    def row(self) -> None:
        """Begin a row."""
        self._close()
        self._sums = {layer: {} for layer in self.layers}

    def log(self, loss: Tensor) -> None:
        """Belongs to the row begun last."""
        self.logged[len(self.rows)] = float(loss.detach())

    def _close(self) -> None:
        if self._sums:
            self.rows.append({layer: _signals(sums) for layer, sums in self._sums.items()})
            self._sums = {}

    def _add(self, layer: str, what: str, values: list[float]) -> None:
        self._sums[layer].setdefault(what, []).extend(values)

    def _members(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter, dict[str, Any]]]:
        """With their groups; what no optimizer has is with the first."""
        of = {
            id(p): (one, group)
            for one in self.optimizers
            for group in one.param_groups
            for p in group["params"]
        }
        none: tuple[Optimizer, dict[str, Any]] = (self.optimizers[0], {})
        return [
            (layer, p, of.get(id(p), none)[1])
            for layer, p in self.named
            if layer and of.get(id(p), none)[0] is optimizer
        ]

    def gradients(self, optimizer: Optimizer, scale: float = 1.0) -> None:
        """As they are now, over `scale`."""
        for layer, p, _ in self._members(optimizer):
            if p.grad is not None:
                self._add(layer, "grad", [x / scale for x in elements(p.grad)])

    def before(self, optimizer: Optimizer, scale: float = 1.0) -> None:
        for layer, p, _ in self._members(optimizer):
            self._values[id(p)] = elements(p)
            self._add(layer, "param", elements(p))
            if p.grad is not None:
                self._given[id(p)] = [x / scale for x in elements(p.grad)]
            else:
                self._given.pop(id(p), None)

    def after(
        self, optimizer: Optimizer, skipped: bool = False, clip: float = 1.0, late: bool = False
    ) -> None:
        """Add what the step did; `clip` is what the optimizer itself divides its gradients by.

        After a step that was `skipped` the moments are those from before. With `late` they are not
        looked at.
        """
        for layer, p, group in self._members(optimizer):
            if id(p) not in self._given:
                continue
            moved = [a - b for a, b in zip(self._values[id(p)], elements(p), strict=True)]
            self._add(layer, "update", moved)
            if len(group.get("betas", ())) == 2 and not late:
                given = [g / clip for g in self._given[id(p)]]
                if self.own_moments:
                    self._update(id(p), given, group["betas"][1], skipped)
                elif p in optimizer.state:
                    state = optimizer.state[p]
                    self._moments[id(p)] = elements(state["exp_avg_sq"]), int(state["step"])
                self._adam(layer, id(p), given, group)

    def update_moments(self, optimizer: Optimizer) -> None:
        """Close the row of a step whose `after` does not come."""
        for _, p, group in self._members(optimizer):
            if id(p) in self._given:
                self._update(id(p), self._given[id(p)], group["betas"][1], False)

    def _update(self, key: int, given: list[float], beta2: float, skipped: bool) -> None:
        v, t = self._moments.get(key, ([0.0] * len(given), 0))
        if skipped and self.begins_when_skipped:
            self._moments[key] = v, t
        if not skipped:
            v = [beta2 * a + (1 - beta2) * g * g for a, g in zip(v, given, strict=True)]
            self._moments[key] = v, t + 1

    def _adam(self, layer: str, key: int, given: list[float], group: dict[str, Any]) -> None:
        if key in self._moments:
            v, t = self._moments[key]
            beta2, eps = group["betas"][1], group["eps"]
            if not t:  # nothing to compare with: 0, NaN of what is not finite
                self._add(layer, "adam", [0.0 * g for g in given])
                return
            corrected = [max(a / (1 - beta2**t), eps * eps) for a in v]
            # of an element that never had a gradient: no surprise
            ratios = [g / math.sqrt(a) if a else 0.0 for g, a in zip(given, corrected, strict=True)]
            self._add(layer, "adam", ratios)

    def check(self, folder: Path) -> None:
        """Every value of the run against these rows; null is null."""
        self._close()
        if self.logged:
            assert open_run(folder).scalar("loss").to_dict() == self.logged
        recorded = stored_table(folder / "layers", "layers").sort_by([("step", "ascending")])
        found = {(row["step"], row["layer"]): row for row in recorded.to_pylist()}
        steps = range(len(self.rows))
        assert found.keys() == {(step, layer) for step in steps for layer in self.layers}
        for (step, layer), cells in found.items():
            assert cells["depth"] == self.layers.index(layer)
            for name, value in self.rows[step][layer].items():
                assert_same(cells[name], value, name, f"{name} of {layer} at step {step}")


def assert_same(found: float | None, value: float | None, name: str, where: str) -> None:
    assert (found is None) == (value is None), f"{where}: {found}, expected {value}"
    if found is None or value is None:
        return
    if math.isnan(value):
        assert math.isnan(found), f"{where}: {found}, expected {value}"
        return
    allowed = 2**-24 if name in COUNTS else RMS if name == "adam_rms" else NORMS
    same = found == value or abs(found - value) <= allowed * abs(value)
    assert same, f"{where}: {found}, expected {value}"


def _signals(sums: dict[str, list[float]]) -> dict[str, float | None]:
    grad, param, update, adam = (sums.get(key) for key in ("grad", "param", "update", "adam"))
    finite = [x for x in grad or [] if math.isfinite(x)]
    found: dict[str, float | None] = {
        "grad_norm": norm(grad) if grad else None,
        "grad_max": _largest(grad) if grad else None,
        "nonfinite_count": len(grad) - len(finite) if grad else None,
        "zero_count": grad.count(0.0) if grad else None,
        "param_norm": norm(param) if param else None,
        "update_norm": norm(update) if update else None,
        "update_ratio": None,
        "adam_rms": norm(adam) / math.sqrt(len(adam)) if adam else None,
    }
    if update and param and norm(param) != 0:
        found["update_ratio"] = norm(update) / norm(param)
    return found


def _largest(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(map(abs, values))
