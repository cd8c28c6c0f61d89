"""Define an event as the report tells it."""

import math
from dataclasses import dataclass

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.event_kinds import EventKind

# The kinds that a report tells, the worst first. Bursts hold the spikes; what a restart of the
# learning rate explains is no event of its own.
TOLD_KINDS: tuple[EventKind, ...] = (
    *("nonfinite", "collapse", "departure", "dip", "drift", "loss_spike", "unrest", "burst"),
    *("swell", "growth", "outlier", "stuck", "overflow"),
)
Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Incident:
    """An event as the report tells it.

    `size` orders events of one kind: depth of a dip, ratio of a burst. `facts`: name, text.
    `began_in` is the layer or series where it began, if that is known. `loss` is the loss that the
    event's picture shows, if it must be a certain one. `shows` is the step at which an event
    between two evaluations is first seen: an accuracy falls after `onset`, up to that step.
    """

    run: Diagnosis
    where: str
    kind: EventKind
    onset: int
    end: int
    size: float
    headline: str
    facts: Facts
    began_in: str = ""
    loss: str | None = None
    shows: int | None = None

    @property
    def latest_begin(self) -> int:
        """The latest step at which it may have begun."""
        return self.onset if self.shows is None else self.shows


def lasting(onset: int, end: int, open_end: bool = False) -> str:
    """Say how long an event lasted."""
    if end == onset:
        return f"step {onset:,} alone"
    span = f"steps {onset:,} to {end:,}"
    return f"{span}, not recovered when the run ended" if open_end else span


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
