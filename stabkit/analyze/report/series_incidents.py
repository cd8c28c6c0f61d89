"""Describe events in losses and gradients, and values that are not finite."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.nonfinite import names_of
from stabkit.analyze.report.incident import Facts, Incident, lasting, number
from stabkit.analyze.sentence_parts import BEFORE, still_up
from stabkit.analyze.text import layers_called, listed, risen_from, times
from stabkit.event_kinds import EventKind
from stabkit.printing import counted

NAMED = 6  # layers; more are counted


def of_series(run: Diagnosis, where: str) -> Iterator[Incident]:
    """Yield every event in the losses and gradients of a run."""
    yield from _nonfinite(run, where)
    for row in run.loss.departures.to_dict("records"):
        yield _departure(run, where, row)
    for row in run.loss.spikes.to_dict("records"):
        yield _loss_spike(run, where, row)
    # noise brings other bursts, and the first event is told as the beginning
    for row in run.gradients.bursts_that_count.to_dict("records"):
        yield _burst(run, where, row)
    for row in run.gradients.swells.to_dict("records"):
        yield _swell(run, where, row)
    for row in run.gradients.growths.to_dict("records"):
        yield _growth(run, where, row)
    for row in run.stuck.to_dict("records"):
        yield _stuck(run, where, row)
    yield from _overflow(run, where)


def _nonfinite(run: Diagnosis, where: str) -> Iterator[Incident]:
    """Describe the non-finite values of a run as one event: in what, and since when."""
    if not run.nonfinite:
        return
    first, _, names, often = _entries(run.nonfinite)
    end = run.nonfinite_until
    forever = end > first and end >= _last_step(run)
    lost = {name for entry in run.nonfinite for name in names_of(entry)} & {*run.loss.names}
    entry = min(run.nonfinite, key=lambda entry: int(entry.get("step") or 0))
    signal, reached = entry.get("signal"), entry.get("reached")
    of = f"{signal} of " if signal and signal not in names else ""
    facts: Facts = (
        ("First at step", f"{first:,}"),
        ("In", of + _few(names) if names else "not recorded"),
        ("Lasts", "to the end of the run" if forever else often),
    )
    if lost - {*names}:
        facts += (("Reached", listed(sorted(lost - {*names}))),)
    if isinstance(reached, int) and reached > len(names):
        facts += (("Reached", f"{reached} layers"),)
    where_first = f" in {of}{layers_called(names[0])}" if len(names) == 1 else ""
    headline = f"Non-finite values{where_first} from step {first:,}"
    in_loss = min(lost, default=None)
    yield Incident(
        run, where, "nonfinite", first, end, len(run.nonfinite), headline, facts,
        listed(names[:NAMED]) if names else "", in_loss,
    )  # fmt: skip


def _overflow(run: Diagnosis, where: str) -> Iterator[Incident]:
    if not run.overflows:
        return
    first, last, names, often = _entries(run.overflows)
    facts = (
        ("In", _few(names)),
        ("Times", often),
        ("Means", "no divergence: finite again afterwards; mixed precision skips such steps"),
    )
    yield Incident(
        run, where, "overflow", first, last, len(run.overflows),
        f"Overflow of a gradient norm at step {first:,}", facts,
    )  # fmt: skip


def _entries(entries: list[dict[str, Any]]) -> tuple[int, int, list[str], str]:
    """Return the first step, the last, what is named at the first, and how often, in words."""
    steps = [int(entry.get("step") or 0) for entry in entries]
    first, last = min(steps), max(steps)
    names = names_of(entries[steps.index(first)])
    often = f"{len(steps)} times, the last at step {last:,}" if len(steps) > 1 else "once"
    return first, last, names, often


def _few(names: list[str]) -> str:
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return layers_called(listed(names[:NAMED] + more))


def _last_step(run: Diagnosis) -> int:
    return int(run.tables.scalars()["step"].max())


def _departure(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    onset, end, ratio = int(row["onset"]), int(row["end"]), float(row["ratio"])
    name, best, level = str(row["series"]), number(row["best"]), number(row["level"])
    higher = "" if math.isnan(ratio) else f", {times(ratio)} that"
    fifth = "its last fifth (median)"
    facts = (
        ("In", name),
        ("Lasts", lasting(onset, end, open_end=True)),
        ("Level", f"{best} at best, {level} in {fifth}{higher}"),
    )
    headline = f"{called(name)} left for good at step {onset:,}: {best} → {level} in {fifth}"
    size = level_over_best(row)
    return Incident(run, where, "departure", onset, end, size, headline, facts, loss=name)


def called(loss: str) -> str:
    """Return what begins a sentence on a loss: a name of a series may be in lower case."""
    return "The loss" if loss in ("loss", "loss_relative") else f"The loss {loss}"


def level_over_best(row: dict[Any, Any]) -> float:
    """Return the ratio by which a loss left, or else the distance."""
    ratio = float(row["ratio"])
    return float(row["level"] - row["best"]) if math.isnan(ratio) else ratio


def _loss_spike(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    onset, end, ratio = int(row["onset"]), int(row["end"]), float(row["ratio"])
    names = str(row["first"])
    name = names.split(", ")[0]
    table = run.tables.scalars()
    rows = table[(table["name"] == name) & np.isfinite(table["value"])]
    before = rows["value"][rows["step"] < onset].tail(BEFORE).median()
    peak = rows["value"][rows["step"].between(onset, end)].max()
    if before >= peak > 0:  # a loss that falls fast: its level before says less than its course
        before = peak / ratio
    facts: Facts = (
        ("In", names),
        ("Lasts", lasting(onset, end, open_end=still_up(run, row))),
        ("Height", f"{number(before)} → {number(peak)}, {times(ratio)} {risen_from(row)}"),
    )
    if run.judged.layers or run.judged.norms:
        facts += (("Gradients", burst_between(run, onset - max(end - onset, BEFORE), end)),)
    what = "Long rise of the loss" if row["long"] else "Loss spike"
    headline = f"{what} at step {onset:,}: {number(before)} → {number(peak)}"
    return Incident(run, where, "loss_spike", onset, end, ratio, headline, facts, loss=name)


def burst_between(run: Diagnosis, since: int, until: int) -> str:
    """Say what the first gradient burst between two steps was, or that there is none."""
    near = run.gradients.bursts[run.gradients.bursts["onset"].between(since, until)]
    if near.empty:
        return f"no burst between steps {max(since, 0):,} and {until:,}"
    first = near.iloc[0]
    if run.gradients.norms:
        return f"burst of {first['first']} at step {int(first['onset']):,}"
    return f"burst at step {int(first['onset']):,}, first in {layers_called(first['first'])}"


def _burst(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    onset, end, ratio = int(row["onset"]), int(row["end"]), float(row["ratio"])
    whole = bool(run.gradients.norms)
    spiked = counted(int(row["layers"]), "spike")
    facts = (
        ("Lasts", lasting(onset, end)),
        ("Height", f"{times(ratio)} what was expected"),
        ("In", str(row["first"]))
        if whole
        else ("Layers", f"{spiked}, first in {layers_called(row['first'])}"),
    )
    headline = f"Gradient burst at step {onset:,}, {times(ratio)} what was expected"
    first = str(row["first"])
    return Incident(run, where, "burst", onset, end, ratio, headline, facts, "" if whole else first)


def _swell(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    height = f"{times(row['ratio'])} the level before"
    headline = f"Gradient swell at step {int(row['onset']):,}, {height}"
    return _of_norms(run, where, "swell", row, headline, height)


def _growth(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    height = f"{times(row['ratio'])} their lowest level before"
    headline = f"Growth of gradient norms from step {int(row['onset']):,}, to {height}"
    return _of_norms(run, where, "growth", row, headline, height)


def _of_norms(
    run: Diagnosis, where: str, kind: EventKind, row: dict[Any, Any], headline: str, height: str
) -> Incident:
    onset, end, first = int(row["onset"]), int(row["end"]), str(row["first"])
    whole = bool(run.gradients.norms)
    layers = f"{counted(int(row['layers']), 'layer')}, first in {layers_called(first)}"
    facts = (
        ("Lasts", lasting(onset, end)),
        ("Height", height),
        ("In", first) if whole else ("Layers", layers),
    )
    began, ratio = "" if whole else first, float(row["ratio"])
    return Incident(run, where, kind, onset, end, ratio, headline, facts, began)


def _stuck(run: Diagnosis, where: str, row: dict[Any, Any]) -> Incident:
    onset, end, name = int(row["onset"]), int(row["end"]), str(row["series"])
    facts = (
        ("In", name),
        ("Level", f"{row['start']:.4g} at first, {row['level']:.4g} at the end"),
    )
    headline = f"{called(name)} never fell"
    return Incident(
        run, where, "stuck", onset, end, float(row["level"]), headline, facts, loss=name
    )
