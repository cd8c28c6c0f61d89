"""Norms of layers and of single parameters -> one series per layer and signal, in depth order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stabkit.convert.naming import in_depth_order, layer_names, layer_signal
from stabkit.convert.series import Series, listed, tidy
from stabkit.convert.targets import Target
from stabkit.printing import counted
from stabkit.store.schema import SIGNALS

NAME = r"\w./@+-"  # characters in the name of a layer
Norms = Mapping[str, tuple[Target, Series]]


@dataclass
class LayerSeries:
    """`names` in depth order; `series[signal, layer]`; `went` (source, where, remark).

    `refused`: names of norms whose layer has this signal from another series already.
    """

    names: list[str] = field(default_factory=list)
    series: dict[tuple[str, str], Series] = field(default_factory=dict)
    went: list[tuple[str, str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def group_norms(norms: Norms, order: Sequence[str] = ()) -> LayerSeries:
    """Group norms into layers; `order` is the depth order, if the log itself gives it."""
    result = LayerSeries()
    depths: dict[str, int] = {}
    for name, (target, series) in norms.items():
        if target.kind == "layer":
            layer = tidy(target.name, NAME)
            _put(result, (target.signal, layer), {name: series})
            if target.depth is not None:
                depths[layer] = target.depth
    for key, members in _groups(norms):
        _put(result, key, members)
    result.names = _ordered(list(dict.fromkeys(layer for _, layer in result.series)), order, depths)
    number = {layer: i for i, layer in enumerate(result.names)}
    result.went.sort(key=lambda row: number[row[1].split()[1]])
    return result


def _groups(norms: Norms) -> list[tuple[tuple[str, str], dict[str, Series]]]:
    """Group parameters by (signal, layer); the prefix with more series comes first."""
    found = {n: layer_signal(t.name) for n, (t, _) in norms.items() if t.kind == "parameter"}
    known = {name: parts for name, parts in found.items() if parts is not None}
    layer_of = layer_names(sorted({path for _, _, path in known.values()}))
    common = Counter((signal, prefix) for signal, prefix, _ in known.values())
    groups: dict[tuple[str, str, str], dict[str, Series]] = {}
    alone: set[tuple[str, str, str]] = set()
    for name, (signal, prefix, path) in known.items():
        key = signal, prefix, tidy(layer_of[path], NAME)
        if path.replace("/", ".").endswith(layer_of[path]):
            alone.add(key)  # the norm of the whole layer, which includes its parameters
            groups[key] = {name: norms[name][1]} | groups.get(key, {})
        else:
            groups.setdefault(key, {})[name] = norms[name][1]
    rows = []
    for key in sorted(groups, key=lambda key: -common[key[0], key[1]]):
        signal, _, layer = key
        members = list(groups[key].items())
        split = [members[:1], *([m] for m in members[1:])] if key in alone else [members]
        rows += [((signal, layer), dict(part)) for part in split]
    return rows


def _put(result: LayerSeries, key: tuple[str, str], members: dict[str, Series]) -> None:
    signal, layer = key
    if key in result.series:
        result.refused += members
        return
    result.series[key] = join(list(members.values()), signal)
    remark = f"{counted(len(members), 'parameter')} joined" if len(members) > 1 else ""
    result.went.append((listed(list(members), 3), f"layers: {layer} {signal}", remark))


def join(norms: Sequence[Series], signal: str) -> Series:
    """Return the norm of the whole from the norms of its parts that were measured at each step.

    L2 norms are joined by the root of the sum of squares, largest magnitudes by their maximum.
    """
    if len(norms) == 1:
        return norms[0]
    steps = np.unique(np.concatenate([one.steps for one in norms]))
    whole = np.zeros(steps.size)
    for one in norms:
        at = np.searchsorted(steps, one.steps)
        if signal == "grad_max":
            whole[at] = np.maximum(whole[at], one.values)
        else:
            whole[at] = np.hypot(whole[at], one.values)  # squares of large norms would overflow
    return Series(steps, whole)


def _ordered(names: list[str], order: Sequence[str], depths: Mapping[str, int]) -> list[str]:
    told = [name for name in dict.fromkeys(order) if name in names and name not in depths]
    rest = in_depth_order([name for name in names if name not in told and name not in depths])
    result = told + rest
    for name in sorted(depths, key=lambda name: depths[name]):
        result.insert(depths[name], name)
    return result


def layer_arrays(
    layers: LayerSeries,
) -> tuple[
    "np.ndarray[tuple[int], np.dtype[np.int64]]",
    dict[str, "np.ndarray[tuple[int, int], np.dtype[np.float32]]"],
    dict[str, "np.ndarray[tuple[int, int], np.dtype[np.bool_]]"],
]:
    """Return steps, values and missing, each [steps, layers], as `Writer.add_layers` takes them."""
    steps = np.unique(np.concatenate([one.steps for one in layers.series.values()]))
    shape = steps.size, len(layers.names)
    signals = dict.fromkeys((*SIGNALS, *(signal for signal, _ in layers.series)))
    values = {signal: np.zeros(shape, np.float32) for signal in signals}
    missing = {signal: np.ones(shape, dtype=bool) for signal in signals}
    column = {layer: i for i, layer in enumerate(layers.names)}
    for (signal, layer), one in layers.series.items():
        at = np.searchsorted(steps, one.steps), column[layer]
        with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, and an event
            values[signal][at] = one.values
        missing[signal][at] = False
    return steps, values, missing
