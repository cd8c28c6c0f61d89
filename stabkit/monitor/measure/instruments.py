"""The instruments of a Monitor. A bad request is refused here, before its folder is touched."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from stabkit.monitor.knn.evaluation import KnnEvaluation
from stabkit.monitor.knn.knn import KNN
from stabkit.monitor.layers import by_layer, group_layers, in_order
from stabkit.monitor.measure.layer_measure import LayerMeasure
from stabkit.monitor.measure.options import Options
from stabkit.monitor.measure.probing import Probing
from stabkit.monitor.members import Members, check_same_model, measurable
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.probe.teacher import match
from stabkit.monitor.ranks import rank
from stabkit.monitor.signals.noise import NoiseSignals
from stabkit.monitor.signals.signal import DerivedSignal, LayerSignal, ProbeSignal, choose


class Instruments(NamedTuple):
    """The instruments of one Monitor. `layers`: the parameters of each layer, in depth order."""

    layers: dict[str, list[Tensor]]
    derived: list[DerivedSignal]
    measure: LayerMeasure
    probing: Probing
    noise: NoiseSignals
    members: Members
    knn: KnnEvaluation | None  # also None in a process that does not evaluate
    notes: list[str]  # what a reader of the rows must know


def make_instruments(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    options: Options,
    failed: Callable[[str, Exception], None],
) -> Instruments:
    """Make the instruments that the options need. `failed` hears of a signal that raises later.

    Raises ValueError or TypeError for what cannot be measured: a model, an optimizer, a signal, an
    option, samples of a kNN, a teacher.
    """
    knn, probe, teacher, layer_of = options.knn, options.probe, options.teacher, options.layer_of
    named = measurable(model, layer_of)
    check_same_model(model, optimizers)
    if knn is not None and not isinstance(knn, KNN):
        raise TypeError(f"Monitor: knn must be stabkit.KNN(bank=..., queries=...), got {knn!r}")
    if probe is not None and not isinstance(probe, Probe):
        raise TypeError(
            "Monitor: probe must be stabkit.Probe(view1=...), got an object of type "
            f"{type(probe).__name__}"
        )
    notes: list[str] = []
    if teacher is not None:
        probe, notes = probe_with(probe, teacher), parameters_left_out(teacher, model)
    asked = choose(options.signals, probe)
    if teacher is not None and probe is not None:
        known = {signal.name for signal in asked}
        asked += [signal for signal in choose(of_teacher(probe), probe) if signal.name not in known]
    _check_whole("flush_every", options.flush_every, "step or more")
    every_step = "step or more (1: all signals at every step)"
    _check_whole("full_every", options.full_every, every_step)
    _check_whole("probe_every", options.probe_every, "step or more")
    if options.samples_per_step is not None:
        _check_whole("samples_per_step", options.samples_per_step, "sample or more")
    if probe is not None and not any(isinstance(signal, ProbeSignal) for signal in asked):
        notes.append(
            "a probe was given, and none of the signals looks at it: name the level features "
            "among them, as signals=['basic', 'features']"
        )
    names = [name for name, _ in named]
    found, numbers = group_layers(names, layer_of)
    parameters = [p for _, p in named]
    of_layers = [signal for signal in asked if isinstance(signal, LayerSignal)]
    of_probe = [signal for signal in asked if isinstance(signal, ProbeSignal)]
    probing = Probing(model, probe, of_probe, options.probe_every, optimizers, layer_of, failed)
    layers = in_order(found, probing.executed() if layer_of is None else [])
    layer = [layers.index(found[number]) for number in numbers]
    measure = LayerMeasure(
        parameters, names, layer, len(layers), of_layers, options.flush_every, failed
    )
    # a sharded model runs in all processes or in none
    evaluates = rank() == 0 or measure.blocks.sharded
    others = [] if teacher is None else [teacher]
    return Instruments(
        by_layer(parameters, layer, layers),
        [signal for signal in asked if isinstance(signal, DerivedSignal)],
        measure,
        probing,
        NoiseSignals(asked, options.samples_per_step, model, failed),
        Members(model, named, optimizers, layer_of),
        KnnEvaluation(knn, model, others) if knn is not None and evaluates else None,
        notes,
    )


def _check_whole(name: str, value: Any, what: str) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        hint = "" if type(value) is int else ", which is no whole number"
        raise ValueError(f"Monitor: {name} must be 1 {what}, got {value!r}{hint}")


def probe_with(probe: Probe | None, teacher: nn.Module) -> Probe:
    """Return the probe with the teacher as its target. Raises TypeError or ValueError."""
    if not isinstance(teacher, nn.Module):
        raise TypeError(
            f"Monitor: teacher is of type {type(teacher).__name__}; give the module that holds the "
            "averaged weights"
        )
    if probe is None:
        return Probe(None, target=teacher)
    if probe.target is not None and probe.target is not teacher:
        raise ValueError("Monitor: teacher and the probe's target are two modules; give one")
    return replace(probe, target=teacher)


def parameters_left_out(teacher: nn.Module, model: nn.Module) -> list[str]:
    """Say which parameters of the teacher are not compared. Raises ValueError if none can be."""
    found = match(model, teacher)
    if not found.left_out:
        return []
    return [
        f"teacher: {len(found.left_out)} of its parameters are not in the model, "
        f"{found.left_out[0]} first; they are not compared"
    ]


def of_teacher(probe: Probe) -> list[str]:
    """Return what is measured of a teacher without being asked for by name."""
    distances = ["teacher_distance", "target_distance"]
    if probe.view1 is None:
        return distances
    spreads = ["probe_feature_std", "probe_rank", "teacher_feature_std", "teacher_rank"]
    return [*distances, *spreads, "target_cosine"]
