"""What a Monitor measures with, made before its folder is touched: all that can be refused."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.layers import by_layer, group_layers
from stabkit.monitor.measure.layer_measure import LayerMeasure
from stabkit.monitor.measure.probing import Probing
from stabkit.monitor.members import Members, check_same_model, measurable
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.signals.noise import NoiseSignals
from stabkit.monitor.signals.signal import Asked, DerivedSignal, LayerSignal, ProbeSignal, choose


class Parts(NamedTuple):
    """The instruments of one Monitor. `layers`: the parameters of each layer, in depth order."""

    layers: dict[str, list[Tensor]]
    derived: list[DerivedSignal]
    measure: LayerMeasure
    probing: Probing
    noise: NoiseSignals
    members: Members


def make_parts(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    signals: Asked | Sequence[Asked],
    probe: Probe | None,
    probe_every: int,
    layer_of: Callable[[str], str | None] | None,
    flush_every: int,
    samples_per_step: int | None,
    failed: Callable[[str, Exception], None],
) -> Parts:
    """Make the instruments that `signals` need. `failed` hears of a signal that raises later.

    Raises ValueError for a model, an optimizer, a signal or an option that cannot be measured.
    """
    named = measurable(model, layer_of)
    check_same_model(model, optimizers)
    asked = choose(signals, probe)
    if flush_every < 1:
        raise ValueError(f"Monitor: flush_every must be 1 step or more, got {flush_every}")
    names = [name for name, _ in named]
    layers, layer = group_layers(names, layer_of)
    parameters = [p for _, p in named]
    of_layers = [signal for signal in asked if isinstance(signal, LayerSignal)]
    of_probe = [signal for signal in asked if isinstance(signal, ProbeSignal)]
    return Parts(
        by_layer(parameters, layer, layers),
        [signal for signal in asked if isinstance(signal, DerivedSignal)],
        LayerMeasure(parameters, names, layer, len(layers), of_layers, flush_every, failed),
        Probing(model, probe, of_probe, probe_every, optimizers, layer_of, failed),
        NoiseSignals(asked, samples_per_step, model, failed),
        Members(model, named, optimizers, layer_of),
    )
