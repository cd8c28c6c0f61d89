"""When probe signals are measured, and how their values reach the rows."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.layers import group_layers
from stabkit.monitor.measure.host_copy import HostCopy, start_copy
from stabkit.monitor.probe.forward import hooks
from stabkit.monitor.probe.probe import Probe, ProbePass, looking
from stabkit.monitor.probe.undisturbed import unwrap_model
from stabkit.monitor.signals.signal import ProbeSignal

# A measurement: step, signal, its layers (None for a signal of the run), values.
ProbeResult = tuple[int, str, list[str] | None, HostCopy]


class Probing:
    """Measures probe `signals` at every `every`-th step, and keeps the values on the device."""

    def __init__(
        self,
        model: nn.Module,
        probe: Probe | None,
        signals: Sequence[ProbeSignal],
        every: int,
        optimizers: Sequence[Optimizer],
        layer_of: Callable[[str], str | None] | None,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.signals = {signal.name: signal for signal in signals}
        self._model, self._probe, self._every = model, probe, every
        self._optimizers = optimizers
        self._layer_of = _layer_finder(model, layer_of)
        self._failed = failed
        self._seen: list[tuple[int, str, list[str] | None, Tensor]] = []

    def is_due(self, step: int) -> bool:
        """Return whether this step is measured."""
        return bool(self.signals) and step % self._every == 0

    def executed(self) -> list[str]:
        """Return the layers in the order in which the probe's forward first runs their modules.

        Empty without a probe, and where the forward fails: the first look says why.
        """
        order: dict[str, None] = {}
        if self._probe is None:
            return []
        try:
            with looking(self._model) as model, hooks() as handles:
                for name, module in model.named_modules():
                    own = [parameter for parameter, _ in module.named_parameters()]
                    layers = [self._layer_of(f"{name}.{parameter}") for parameter in own]
                    # a module that holds others starts before them, and its own parameters may
                    # act at any time
                    if not any("." in parameter for parameter in own):
                        handles.append(
                            module.register_forward_pre_hook(
                                lambda _m, _i, found=layers: order.update(dict.fromkeys(found))
                            )
                        )
                seen = ProbePass(model, self._probe, self._layer_of, self._optimizers)
                with torch.no_grad():
                    seen.forward(model, self._probe.view1)
        except Exception:
            return []
        return [layer for layer in order if layer]

    def look(self, step: int) -> None:
        """Measure all signals on the probe. A signal that raises is not measured again."""
        assert self._probe is not None
        try:
            with looking(self._model) as model:
                seen = ProbePass(model, self._probe, self._layer_of, self._optimizers)
                for name, signal in list(self.signals.items()):
                    try:
                        self._keep(step, name, signal.measure(seen))
                    except Exception as error:
                        self._drop(name, error)
        except Exception as error:  # in the look itself, so the next one would fail too
            for name in list(self.signals):
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        del self.signals[name]
        self._failed(name, error)

    def _keep(self, step: int, name: str, found: Mapping[str, Tensor] | Tensor) -> None:
        if isinstance(found, Tensor):
            self._seen.append((step, name, None, found.detach().double().reshape(1)))
        elif found:
            values = torch.stack([v.detach().double().reshape(()) for v in found.values()])
            self._seen.append((step, name, list(found), values))

    def take(self) -> list[ProbeResult]:
        """Begin to copy every look since the last call to the host."""
        seen, self._seen = self._seen, []
        return [(step, name, layers, start_copy(values)) for step, name, layers, values in seen]


def spread(
    looks: Sequence[ProbeResult],
    steps: NDArray[np.int64],
    layers: Sequence[str],
) -> tuple[
    dict[str, NDArray[np.float64]], dict[str, NDArray[np.bool_]], list[tuple[int, str, float]]
]:
    """Return the looks as rows, and those that are one number for the run.

    The rows: each signal's values [steps, layers], and where it was measured. The others: (step,
    name, value).
    """
    values: dict[str, NDArray[np.float64]] = {}
    measured: dict[str, NDArray[np.bool_]] = {}
    of_run = []
    row = {int(step): i for i, step in enumerate(steps)}
    column = {layer: i for i, layer in enumerate(layers)}
    for step, name, of, block in looks:
        numbers = block.read()
        if of is None:
            of_run.append((step, name, float(numbers[0])))
            continue
        if name not in values:
            values[name] = np.zeros((len(steps), len(layers)))
            measured[name] = np.zeros((len(steps), len(layers)), dtype=bool)
        for layer, number in zip(of, numbers, strict=True):
            if layer in column and step in row:
                values[name][row[step], column[layer]] = number
                measured[name][row[step], column[layer]] = True
    return values, measured, of_run


def _layer_finder(
    model: nn.Module, layer_of: Callable[[str], str | None] | None
) -> Callable[[str], str]:
    """Return a function from a name in the model without its wrappers to its layer.

    The name is that of a module or a parameter. Its layer is that of the first parameter within
    it, or else of the module that holds it.
    """
    names, plain = (
        [name for name, _ in one.named_parameters(remove_duplicate=False)]
        for one in (model, unwrap_model(model))
    )
    kept = [(p, n) for p, n in zip(plain, names, strict=True) if layer_of is None or layer_of(n)]
    layers, number = group_layers([n for _, n in kept], layer_of)
    of = {p: layers[i] for (p, _), i in zip(kept, number, strict=True)}

    def find(name: str) -> str:
        while name:
            if name in of:
                return of[name]
            inside = next((layer for p, layer in of.items() if p.startswith(f"{name}.")), None)
            if inside is not None:
                return inside
            name = name.rpartition(".")[0]
        return ""

    return find
