"""Stretches of a run with non-finite values, as the Monitor reports them."""

from collections.abc import Iterator

import numpy as np

from stabkit.convert.mapping import ConversionPlan
from stabkit.convert.series import Series
from stabkit.detect.nonfinite import nonfinite_stretches
from stabkit.store.names import is_gradient_norm

KINDS = ("nonfinite", "overflow")
Event = tuple[str, int, dict[str, list[str]]]


def nonfinite_events(plan: ConversionPlan) -> list[Event]:
    """Return kind, first step and names of each stretch, in the order of their steps.

    The names are a dict with `layers`, and `names` of other series. The kind is `overflow` where
    only gradient norms are not finite, as in a step of fp16 that the scaler skipped, and else
    `nonfinite`. A stretch lasts until the next finite value of its series; stretches of one kind
    that overlap are one.
    """
    found = sorted(_of_each(plan), key=lambda row: row[1:3])  # layers stay in depth order
    kinds = [_merged(kind, [row[1:] for row in found if row[0] == kind]) for kind in KINDS]
    return sorted((event for of_kind in kinds for event in of_kind), key=lambda event: event[1])


def _merged(kind: str, found: list[tuple[int, int, str, str]]) -> list[Event]:
    events: list[Event] = []
    reach = None
    for begin, end, group, name in found:
        if reach is None or begin > reach:
            events.append((kind, begin, {}))
            reach = end
        reach = max(reach, end)
        _, at, names = events[-1]
        if begin == at and name not in names.setdefault(group, []):
            names[group].append(name)
    return events


def _of_each(plan: ConversionPlan) -> Iterator[tuple[str, int, int, str, str]]:
    """Yield kind, begin and end of each stretch, `layers` or `names`, and the name."""
    depth = {layer: i for i, layer in enumerate(plan.layers.names)}
    norms = sorted(plan.layers.series.items(), key=lambda item: depth[item[0][1]])
    for (signal, layer), series in norms:
        kind = "nonfinite" if signal == "param_norm" else "overflow"
        for begin, end in _of_one(_as_stored(series)):
            yield kind, begin, end, "layers", layer
    for name, series in plan.scalars.items():
        kind = "overflow" if is_gradient_norm(name) else "nonfinite"
        for begin, end in _of_one(series):
            yield kind, begin, end, "names", name
    for metric, evaluations in plan.evals.items():
        for evaluation in evaluations:
            for begin, end in _of_one(evaluation.series):
                yield "nonfinite", begin, end, "names", metric


def _as_stored(series: Series) -> Series:
    """Return a layer's series as the table holds it: values beyond float32 are infinite."""
    with np.errstate(over="ignore"):
        return Series(series.steps, series.values.astype(np.float32).astype(np.float64))


def _of_one(series: Series) -> Iterator[tuple[int, int]]:
    """Yield the first step of each stretch and the last step before the next finite value."""
    begins, ends = nonfinite_stretches(~np.isfinite(series.values))
    last = np.append(series.steps[1:] - 1, np.iinfo(np.int64).max)
    for begin, end in zip(begins, ends, strict=True):
        yield int(series.steps[begin]), int(last[end])
