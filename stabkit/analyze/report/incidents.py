"""Describe the events of runs for the report: what, where, when and how bad, in words."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from stabkit.analyze.accuracy_events import shown_from
from stabkit.analyze.across_runs import between_seeds, told_dips
from stabkit.analyze.cells import group_cells, run_label
from stabkit.analyze.collapse_events import ACCURACY, CALLED
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.report.incident import TOLD_KINDS, Facts, Incident, lasting, number
from stabkit.analyze.report.series_incidents import burst_between, of_series
from stabkit.analyze.sentences import p_words, swings_between
from stabkit.analyze.text import times
from stabkit.detect.collapse import NOTHING
from stabkit.store.schema import METRIC

SEVERITY = {
    "benign": "benign: back to the trend that it fell from",
    "lingering": "lingering: it settled below the trend that it fell from",
    "restart": "restart: it came back as another solution, as different as that of another seed",
    "terminal": "terminal: the run ended with little of what it had",
    "censored": "open: the run ended before it recovered",
}


def all_incidents(runs: Diagnoses) -> list[Incident]:
    """Return every event of every run, the worst kind first and the deepest of a kind first."""
    found = [
        incident
        for cell in group_cells(runs)
        for between in (between_seeds(cell.runs),)
        for run in cell.runs
        for incident in _of_run(run, run_label(cell, run), between)
    ]
    return sorted(found, key=lambda incident: (TOLD_KINDS.index(incident.kind), -incident.size))


def _of_run(run: Diagnosis, where: str, between: float | None) -> Iterator[Incident]:
    yield from of_series(run, where)
    yield from _collapse(run, where)
    for dip in told_dips(run, between).to_dict("records"):
        yield _dip(run, where, dip)
    for drift in run.accuracy.drifts.to_dict("records"):
        yield _drift(run, where, drift)
    for unrest in run.unrest.to_dict("records"):
        yield _unrest(run, where, unrest)
    for outlier in run.accuracy.outliers.to_dict("records"):
        yield _outlier(run, where, outlier)


def _accuracy(run: Diagnosis) -> Facts:
    """Return the name of the accuracy, unless it is our own."""
    return () if run.accuracy.metric == METRIC else (("In", run.accuracy.metric),)


def _p_value(p: float) -> tuple[str, str]:
    words = p_words(p).removeprefix("p ").removeprefix("= ")
    return "p-value", "no test: samples were not recorded" if pd.isna(p) else words


def _collapse(run: Diagnosis, where: str) -> Iterator[Incident]:
    """Describe the collapse of a run as one event, with every signal that shows it."""
    found = run.collapses
    if found.empty:
        return
    onset, end = int(found["onset"].min()), int(found["end"].max())
    signals = [
        (CALLED[str(name)].capitalize(), _signal(rows))
        for name, rows in found.groupby("signal", sort=False)
    ]
    facts = (("Lasts", lasting(onset, end)), *signals)
    stuck = found[(found["signal"] == "loss_relative") & (found["level"] > NOTHING)]
    if (stuck["onset"] <= run.tables.scalars()["step"].min()).any():
        headline = "Collapse: the loss never left chance"  # and other signs came later
    else:
        headline = f"Collapse from step {onset:,}"
    yield Incident(run, where, "collapse", onset, end, end - onset, headline, facts)


def _signal(rows: pd.DataFrame) -> str:
    start, level = float(rows["start"].iloc[0]), float(rows["level"].iloc[-1])
    values = f"{number(start)} → {number(level)}"
    if rows["signal"].iloc[0] == ACCURACY:
        values = f"{100 * start:.1f} → {100 * level:.1f} %"
    span = f"steps {int(rows['onset'].min()):,} to {int(rows['end'].max()):,}"
    often = f" in {len(rows)} stretches" if len(rows) > 1 else ""
    return f"{values}, {span}{often}"


def _dip(run: Diagnosis, where: str, dip: dict[Any, Any]) -> Incident:
    onset, end, trough = (int(dip[key]) for key in ("onset", "end", "trough"))
    points = 100 * dip["depth"]
    open_end = bool(pd.isna(dip["recovery"]))
    relative = dip["relative_depth"]
    share = "" if pd.isna(relative) else f", {relative:.0%} of what it had above chance"
    p = dip["p_value"]
    facts: Facts = (
        *_accuracy(run),
        ("Lasts", lasting(onset, end, open_end)),
        ("Depth", f"{points:.1f} points below its own level at step {trough:,}{share}"),
        _p_value(p),
        ("Severity", SEVERITY.get(str(dip["severity"]), str(dip["severity"]))),
    )
    if run.judged.layers or run.judged.norms:
        since = onset - max(trough - onset, 1)  # as far ahead of the onset as the fall is long
        facts += (("Gradients", burst_between(run, since, trough)),)
    headline = f"Dip of {points:.1f} points from step {onset:,} on"
    size = float(dip["depth"])
    return Incident(run, where, "dip", onset, end, size, headline, facts, shows=_shown(run, onset))


def _drift(run: Diagnosis, where: str, drift: dict[Any, Any]) -> Incident:
    onset, trough = int(drift["onset"]), int(drift["trough"])
    points, p = 100 * drift["depth"], drift["p_value"]
    facts = (
        *_accuracy(run),
        ("Falls", lasting(onset, trough)),
        ("Depth", f"{points:.1f} points between two levels, with no dip in between"),
        _p_value(p),
    )
    headline = f"Drift of {points:.1f} points from step {onset:,}"
    size = float(drift["depth"])
    return Incident(
        run,
        where,
        "drift",
        onset,
        trough,
        size,
        headline,
        facts,
        shows=_shown(run, onset),
    )


def _shown(run: Diagnosis, onset: int) -> int:
    return int(shown_from(run.accuracy.evals["step"].to_numpy(), np.array([onset]))[0])


def _unrest(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    onset, end, name = int(row["onset"]), int(row["end"]), str(row["series"])
    loss = None if name == run.accuracy.metric else name
    between, ratio = swings_between(run, row), float(row["ratio"])
    facts: Facts = (
        *((("In", loss),) if loss else _accuracy(run)),
        ("Lasts", lasting(onset, end)),
        ("Swings", f"between {between}, {times(ratio)} as far as in a quiet stretch before"),
    )
    headline = f"Unrest from step {onset:,}: swings between {between}"
    return Incident(run, where, "unrest", onset, end, ratio, headline, facts, loss=loss)


def _outlier(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    onset, points = int(row["onset"]), 100 * row["depth"]
    beside = "the one before it" if row["last"] else "the lower of the two beside it"
    facts = (
        *_accuracy(run),
        ("At step", f"{onset:,}, one evaluation alone"),
        ("Depth", f"{points:.1f} points below {beside}, {row['height']:.0f} times their noise"),
        ("Means", "no dip: it does not tell whether the network or its evaluation failed"),
    )
    headline = f"Single evaluation {points:.1f} points low at step {onset:,}"
    return Incident(run, where, "outlier", onset, onset, float(row["depth"]), headline, facts)
