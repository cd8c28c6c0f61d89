"""Stretches of a run with non-finite values, as the Monitor reports them."""

from collections.abc import Iterator

import numpy as np

from stabkit.convert.mapping import Plan
from stabkit.convert.series import Series
from stabkit.detect.nonfinite import nonfinite_stretches


def stretches(plan: Plan) -> list[tuple[int, dict[str, list[str]]]]:
    """Return the first step of each stretch, and what was not finite there.

    The second is a dict with `layers`, and `names` of other series. A stretch lasts until the next
    finite value of its series. Stretches of several series that overlap are one.
    """
    found = sorted(_of_each(plan), key=lambda stretch: stretch[:2])
    events: list[tuple[int, dict[str, list[str]]]] = []
    reach = None
    for begin, end, kind, name in found:
        if reach is None or begin > reach:
            events.append((begin, {}))
            reach = end
        reach = max(reach, end)
        at, names = events[-1]
        if begin == at and name not in names.setdefault(kind, []):
            names[kind].append(name)
    return events


def _of_each(plan: Plan) -> Iterator[tuple[int, int, str, str]]:
    for layer in plan.layers.names:
        for (_, of), series in plan.layers.series.items():
            if of == layer:
                for begin, end in _of_one(_as_stored(series)):
                    yield begin, end, "layers", layer
    for name, series in plan.scalars.items():
        for begin, end in _of_one(series):
            yield begin, end, "names", name
    for metric, evaluations in plan.evals.items():
        for evaluation in evaluations:
            for begin, end in _of_one(evaluation.series):
                yield begin, end, "names", metric


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
