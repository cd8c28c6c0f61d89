"""Describe the events of runs for the report: what, where, when and how bad, in words."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from stabkit.analyze.across_runs import between_seeds, told_dips
from stabkit.analyze.cells import group_cells, run_label
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.text import counted

Kind = Literal[
    "non-finite", "collapse", "departure", "dip", "drift", "loss spike", "burst", "outlier",
    "overflow",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)  # the worst first

SEVERITY = {
    "benign": "benign: back to the trend that it fell from",
    "lingering": "lingering: it settled below the trend that it fell from",
    "restart": "restart: it came back as another solution, no closer to that before than a seed's",
    "terminal": "terminal: the run ended with little of what it had",
    "censored": "open: the run ended before it recovered",
}


@dataclass(frozen=True)
class Incident:
    """An event as the report tells it.

    `size` orders events of one kind: depth of a dip, ratio of a burst. `facts`: name, text. `layer`
    is where it began, if that is known.
    """

    run: Diagnosis
    where: str
    kind: Kind
    onset: int
    end: int
    size: float
    headline: str
    facts: tuple[tuple[str, str], ...]
    layer: str = ""


def all_incidents(runs: Diagnoses) -> list[Incident]:
    """Return every event of every run, the worst kind first and the deepest of a kind first."""
    found = [
        incident
        for cell in group_cells(runs)
        for between in (between_seeds(cell.runs),)
        for run in cell.runs
        for incident in _of_run(run, run_label(cell, run), between)
    ]
    return sorted(found, key=lambda incident: (KINDS.index(incident.kind), -incident.size))


def _of_run(run: Diagnosis, where: str, between: float | None) -> Iterator[Incident]:
    yield from _nonfinite(run, where)
    yield from _collapse(run, where)
    for dip in told_dips(run, between).to_dict("records"):
        yield _dip(run, where, dip, run.bursts)
    for drift in run.drifts.to_dict("records"):
        yield _drift(run, where, drift)
    for burst in run.bursts.to_dict("records"):
        yield _burst(run, where, burst)


def _nonfinite(run: Diagnosis, where: str) -> Iterator[Incident]:
    """Describe the non-finite values of a run as one event: how often, and where they began."""
    seen = run.nonfinite
    if not seen:
        return
    steps = [int(event.get("step") or 0) for event in seen]
    first, last = min(steps), max(steps)
    named = seen[steps.index(first)].get("layers")
    layers = ", ".join(map(str, named)) if isinstance(named, list) else ""
    facts = (
        ("First at step", f"{first:,}"),
        ("Layers then", layers or "not recorded"),
        ("Times", f"{len(seen)}, the last at step {last:,}"),
    )
    headline = f"Non-finite values from step {first:,}"
    yield Incident(run, where, "non-finite", first, last, len(seen), headline, facts, layers)


def _collapse(run: Diagnosis, where: str) -> Iterator[Incident]:
    """Describe the collapse of a run as one event, with every signal that shows it."""
    found = run.collapses
    if found.empty:
        return
    onset, end = int(found["onset"].min()), int(found["end"].max())
    signals = [(str(name), _signal(rows)) for name, rows in found.groupby("signal", sort=False)]
    facts = (("Lasts", _lasting(onset, end)), *signals)
    headline = f"Collapse from step {onset:,}"
    yield Incident(run, where, "collapse", onset, end, end - onset, headline, facts)


def _signal(rows: pd.DataFrame) -> str:
    start, level = float(rows["start"].iloc[0]), float(rows["level"].iloc[-1])
    span = f"steps {int(rows['onset'].min()):,} to {int(rows['end'].max()):,}"
    often = f" in {len(rows)} stretches" if len(rows) > 1 else ""
    return f"{_number(start)} → {_number(level)}, {span}{often}"


def _dip(run: Diagnosis, where: str, dip: dict[Any, Any], spiked: pd.DataFrame) -> Incident:
    onset, end, trough = (int(dip[key]) for key in ("onset", "end", "trough"))
    points = 100 * dip["depth"]
    open_end = bool(pd.isna(dip["recovery"]))
    relative = dip["relative_depth"]
    share = "" if pd.isna(relative) else f", {relative:.0%} of what it had above chance"
    p = dip["p_value"]
    facts = (
        ("Lasts", _lasting(onset, end, open_end)),
        ("Depth", f"{points:.1f} points below its own level at step {trough:,}{share}"),
        ("p-value", "no test: samples were not recorded" if pd.isna(p) else f"{p:.1g}"),
        ("Severity", SEVERITY.get(str(dip["severity"]), str(dip["severity"]))),
        ("Gradients", _burst_before(onset, trough, spiked)),
    )
    headline = f"Dip of {points:.1f} points at step {trough:,}"
    return Incident(run, where, "dip", onset, end, float(dip["depth"]), headline, facts)


def _drift(run: Diagnosis, where: str, drift: dict[Any, Any]) -> Incident:
    onset, trough = int(drift["onset"]), int(drift["trough"])
    points, p = 100 * drift["depth"], drift["p_value"]
    facts = (
        ("Falls", _lasting(onset, trough)),
        ("Depth", f"{points:.1f} points between two levels, with no dip in between"),
        ("p-value", "no test: samples were not recorded" if pd.isna(p) else f"{p:.1g}"),
    )
    headline = f"Drift of {points:.1f} points from step {onset:,}"
    return Incident(run, where, "drift", onset, trough, float(drift["depth"]), headline, facts)


def _burst_before(onset: int, trough: int, spiked: pd.DataFrame) -> str:
    """Say what gradients did before the trough of a dip.

    The window begins as far ahead of the onset as the fall is long.
    """
    since = onset - max(trough - onset, 1)
    near = spiked[spiked["onset"].between(since, trough)]
    if near.empty:
        return f"no burst between steps {max(since, 0):,} and {trough:,}"
    first = near.iloc[0]
    return f"burst at step {int(first['onset']):,}, first in {first['first']}"


def _burst(run: Diagnosis, where: str, burst: dict[Any, Any]) -> Incident:
    onset, end = int(burst["onset"]), int(burst["end"])
    ratio = float(burst["ratio"])
    layers = int(burst["layers"])
    facts = (
        ("Lasts", _lasting(onset, end)),
        ("Height", f"{ratio:.1f} times the layer's own median"),
        ("Layers", f"{counted(layers, 'spike')}, first in {burst['first']}"),
    )
    headline = f"Gradient burst at step {onset:,}, {ratio:.1f} times the median"
    return Incident(run, where, "burst", onset, end, ratio, headline, facts, str(burst["first"]))


def _lasting(onset: int, end: int, open_end: bool = False) -> str:
    if end == onset:
        return f"step {onset:,} alone"
    span = f"steps {onset:,} to {end:,} ({counted(end - onset, 'step')})"
    return f"{span}, not recovered when the run ended" if open_end else span


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
