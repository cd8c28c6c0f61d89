"""Everything found in one run as one tidy frame."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.nonfinite import names_of
from stabkit.event_kinds import EVENT_KINDS, EventKind

EVENT_COLUMNS = {
    "kind": "object",
    "onset": "int64",
    "end": "int64",
    "layer": "object",
    "size": "float64",
    "p": "float64",
}
Row = tuple[str, int, int, str | None, float, float]


def found_events(run: Diagnosis, kind: str | None = None) -> pd.DataFrame:
    """Return the events of a run in step order, with the columns of EVENT_COLUMNS.

    `kind` is one of EVENT_KINDS; by default all but `spike`, since bursts hold the spikes. `layer`
    is where a spike, burst, swell or growth began (several that began together, joined by commas):
    a layer or a series of the run; the signal of a collapse; None for accuracies. Raises ValueError
    for an unknown kind.
    """
    if kind is not None and kind not in EVENT_KINDS:
        raise ValueError(f"unknown kind of event {kind!r}; there are: {', '.join(EVENT_KINDS)}")
    wanted = [k for k in EVENT_KINDS if (k != "spike" if kind is None else k == kind)]
    rows = [row for name in wanted for row in _ROWS[name](run)]
    frame = pd.DataFrame(rows, columns=list(EVENT_COLUMNS)).astype(EVENT_COLUMNS)
    return frame.sort_values(["onset", "end"], kind="stable", ignore_index=True)


def _dips(run: Diagnosis) -> Iterator[Row]:
    for dip in run.accuracy.dips.itertuples():
        yield "dip", dip.onset, int(dip.end), None, dip.depth, dip.p_value


def _drifts(run: Diagnosis) -> Iterator[Row]:
    last = run.accuracy.evals["step"].max()
    for drift in run.accuracy.drifts.itertuples():
        end = last if math.isnan(drift.recovery) else drift.recovery
        yield "drift", drift.onset, int(end), None, drift.depth, drift.p_value


def _bursts(run: Diagnosis) -> Iterator[Row]:
    for burst in run.gradients.bursts.itertuples():
        yield "burst", burst.onset, burst.end, burst.first, burst.ratio, math.nan


def _swells(run: Diagnosis) -> Iterator[Row]:
    for swell in run.gradients.swells.itertuples():
        yield "swell", swell.onset, swell.end, swell.first, swell.ratio, math.nan


def _growths(run: Diagnosis) -> Iterator[Row]:
    for growth in run.gradients.growths.itertuples():
        yield "growth", growth.onset, growth.end, growth.first, growth.ratio, math.nan


def _spikes(run: Diagnosis) -> Iterator[Row]:
    for spike in run.gradients.spikes.itertuples():
        yield "spike", spike.onset, spike.end, str(spike.layer), spike.ratio, math.nan


def _collapses(run: Diagnosis) -> Iterator[Row]:
    for sign in run.collapses.itertuples():
        yield "collapse", sign.onset, sign.end, sign.signal, sign.level, math.nan


def _unrest(run: Diagnosis) -> Iterator[Row]:
    for row in run.unrest.itertuples():
        layer = None if row.series == run.accuracy.metric else row.series
        yield "unrest", row.onset, row.end, layer, row.scatter, math.nan


def _restarts(run: Diagnosis) -> Iterator[Row]:
    for row in run.at_restarts.itertuples():
        layer = None if row.series == run.accuracy.metric else row.series
        yield "lr_restart", row.onset, int(row.end), layer, row.size, math.nan


def _outliers(run: Diagnosis) -> Iterator[Row]:
    for row in run.accuracy.outliers.itertuples():
        yield "outlier", row.onset, row.onset, None, row.depth, math.nan


def _loss_spikes(run: Diagnosis) -> Iterator[Row]:
    for spike in run.loss.spikes.itertuples():
        yield "loss_spike", spike.onset, spike.end, spike.first, spike.ratio, math.nan


def _departures(run: Diagnosis) -> Iterator[Row]:
    for row in run.loss.departures.itertuples():
        yield "departure", row.onset, row.end, row.series, row.ratio, math.nan


def _stuck(run: Diagnosis) -> Iterator[Row]:
    for row in run.stuck.itertuples():
        yield "stuck", row.onset, row.end, row.series, row.level, math.nan


def _nonfinite(run: Diagnosis) -> Iterator[Row]:
    for kind, onset, _, layer, size, p in _entries("nonfinite", run.nonfinite):
        yield kind, onset, run.nonfinite_until, layer, size, p


def _overflows(run: Diagnosis) -> Iterator[Row]:
    yield from _entries("overflow", run.overflows)


def _entries(kind: str, entries: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """Yield one row: from the first entry of the log to the last, and how many there are."""
    steps = [int(entry.get("step") or 0) for entry in entries]
    if steps:
        first = names_of(entries[steps.index(min(steps))])
        yield kind, min(steps), max(steps), ", ".join(first) or None, len(steps), math.nan


_ROWS: dict[EventKind, Callable[[Diagnosis], Iterator[Row]]] = {
    "dip": _dips,
    "drift": _drifts,
    "outlier": _outliers,
    "burst": _bursts,
    "swell": _swells,
    "growth": _growths,
    "spike": _spikes,
    "loss_spike": _loss_spikes,
    "departure": _departures,
    "stuck": _stuck,
    "unrest": _unrest,
    "collapse": _collapses,
    "nonfinite": _nonfinite,
    "overflow": _overflows,
    "lr_restart": _restarts,
}
