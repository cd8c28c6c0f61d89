"""Count the signs of instability that call for a remedy, and say where it began."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.learning_rate import learning_rate, warmup_of
from stabkit.analyze.order import patch_projection
from stabkit.analyze.report.incident import Incident
from stabkit.analyze.report.param_groups import Group, groups_of, tell_groups
from stabkit.analyze.report.remedy import SIGNS, Sign
from stabkit.analyze.text import layers_called
from stabkit.event_kinds import EventKind

OF_KIND: dict[EventKind, Sign] = {
    "dip": "dips",
    "drift": "dips",
    "burst": "bursts",
    "swell": "bursts",
    "growth": "bursts",
    "collapse": "collapsed",
    "nonfinite": "nonfinite",
    "loss_spike": "loss_spikes",
    "departure": "loss_left",
    "stuck": "stuck",
}
IN_WORDS: dict[EventKind, str] = {
    "nonfinite": "non-finite values",
    "loss_spike": "a loss spike",
    "departure": "a loss that left for good",
    "burst": "a gradient burst",
    "swell": "a gradient swell",
    "growth": "growth of gradient norms",
    "unrest": "unrest",
    "outlier": "a single low evaluation",
    "overflow": "an overflow",
    "stuck": "a loss that never fell",
}
# None of these tells that trouble began early.
UNDATED: tuple[EventKind, ...] = ("burst", "swell", "growth", "stuck")

FEWEST, MOST = 4, 0.75  # layers, and their share, that burst in one step
EARLY = 0.1  # share of a run that is early if its warm-up is not known


def signs_seen(runs: Diagnoses, incidents: Sequence[Incident]) -> Mapping[Sign, int]:
    """Count the runs in which each sign was seen. `incidents` are all those of the runs."""
    seen = {(sign, one.run.name) for one in incidents if (sign := _sign(one))}
    begun: dict[str, int] = {}
    for one in incidents:
        if one.kind not in UNDATED:
            begun[one.run.name] = min(one.onset, begun.get(one.run.name, one.onset))
    for run in runs:
        if run.name in begun and begun[run.name] <= _early(run):
            seen.add(("early", run.name))
        onsets = run.gradients.onsets
        if (onsets.loc[onsets["share"] == 1, "layer"] == patch_projection(run)).any():
            seen.add(("patch_first", run.name))
        if _at_once(run):
            seen.add(("at_once", run.name))
    signs = [sign for sign, _ in seen]
    return {sign: signs.count(sign) for sign in SIGNS}


def _sign(one: Incident) -> Sign | None:
    if one.kind == "unrest":
        return "loss_spikes" if one.loss else "dips"
    return OF_KIND.get(one.kind)


def _at_once(run: Diagnosis) -> bool:
    """Return whether most of the layers, four or more, burst in one step."""
    onsets, layers = run.gradients.onsets, run.gradients.layers
    together = onsets[onsets["lag"] == 0].groupby("burst").size()
    return bool(together.max() >= max(FEWEST, MOST * len(layers))) if len(together) else False


class Began(NamedTuple):
    """Where the trouble of a run began: in words, at which step, and in which parameter groups."""

    words: str
    onset: int | None
    groups: list[Group]


def events_of(incidents: Sequence[Incident], run: str) -> list[Incident]:
    """Return the events of a run from the first on.

    A fall of the accuracy is dated between two evaluations. What happened there to losses and
    gradients comes before it: they are recorded more often, and may be its cause.
    A loss that never left chance is left out if there are others: it is a collapse from step 0 on,
    which says nothing of the cause. So is a drift in which another event begins: its levels are
    means of many evaluations, so that its onset lies before that of the event.
    """
    of_run = (one for one in incidents if one.run.name == run)
    found = sorted(of_run, key=lambda one: (one.latest_begin, one.shows is not None))
    found = [one for one in found if not _is_stuck(one)] or found
    return [one for one in found if one.kind != "drift" or not _inside(one, found)]


def _inside(drift: Incident, events: Sequence[Incident]) -> bool:
    """Return whether an event of another kind begins in the drift."""
    return any(one.kind != "drift" and drift.onset <= one.onset <= drift.end for one in events)


def _is_stuck(one: Incident) -> bool:
    """Return whether it is a collapse that begins with a loss at chance."""
    if one.kind != "collapse":
        return False
    collapses = one.run.collapses
    return "loss_relative" in set(collapses["signal"][collapses["onset"] <= one.onset])


def where_it_began(incidents: Sequence[Incident], worst: Diagnosis) -> Began:
    """Say where the trouble of the worst run began.

    For example `in h.2 at step 300, with a gradient burst`. The first event is told, and if no
    layer is known of it, the first with a layer as well; without events the text is empty. The
    parameter group of that layer is told if a Monitor recorded several.
    """
    of_run = events_of(incidents, worst.name)
    if not of_run:
        return Began("", None, [])
    begin = of_run[0]
    told = next((one for one in of_run if one.began_in), begin)
    name = told.began_in
    where = f"in {layers_called(begin.began_in)} " if begin.began_in else ""
    words = f"{where}{when(begin)}, with {called(begin)}"
    if told is not begin:
        words += f"; then {called(told)} in {layers_called(name)} {when(told)}"
    first = re.split(", | and ", name)[0]  # of several layers that began together
    groups = groups_of(worst, first, told.onset) if first else []
    if groups:
        words += f"; {tell_groups(layers_called(first), groups)}"
    return Began(words, of_run[0].onset, groups)


def called(one: Incident) -> str:
    """Return what an event is, with its article."""
    return IN_WORDS.get(one.kind, f"a {one.kind}")


def when(one: Incident) -> str:
    """Say at which step an event began, or between which two evaluations."""
    if one.kind == "stuck":
        return "at the first step"
    if one.shows is None:
        return f"at step {one.onset:,}"
    return f"between steps {one.onset:,} and {one.shows:,}"


def _early(run: Diagnosis) -> float:
    """Return the step by which trouble is early: twice the warm-up, or a tenth of the run."""
    warmup = run.settings.get("optim.warmup_steps")
    if isinstance(warmup, (int, float)):
        return 2 * float(warmup)
    scalars = run.tables.scalars()
    known = warmup_of(learning_rate(scalars))
    if known is not None:
        return float(scalars["step"].min() + 2 * known)
    steps = scalars["step"]
    return float(steps.min() + EARLY * (steps.max() - steps.min())) if len(steps) else -1.0
