"""Gather the events of each run on one card, with a time line and one picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stabkit.analyze.report.incident import Incident
from stabkit.analyze.report.pictures import Picture
from stabkit.analyze.report.timeline import Timeline, timeline
from stabkit.analyze.report.zooms import pictured

Pictured = tuple[Incident, Picture | None]
# The first of these events of a run has the picture: a burst shows what the fall looked like
TELLING = ("burst", "loss_spike", "dip", "departure")


@dataclass(frozen=True)
class Card:
    """What happened in one run. `events` are in the order of their onsets."""

    where: str
    verdict: str
    timeline: Timeline
    events: tuple[Incident, ...]
    pictured: Incident | None
    picture: Picture | None


def with_pictures(incidents: Sequence[Incident]) -> list[Pictured]:
    """Draw one picture per run: that of its most telling event."""
    chosen: dict[str, Incident] = {}
    for one in sorted(incidents, key=_rank):
        chosen.setdefault(one.run.name, one)
    return [pictured(one) if chosen[one.run.name] is one else (one, None) for one in incidents]


def _rank(one: Incident) -> int:
    return TELLING.index(one.kind) if one.kind in TELLING else len(TELLING)


def make_cards(incidents: Sequence[Pictured], verdicts: Mapping[str, str]) -> list[Card]:
    """Return a card for each run with events, in the order of the runs' first events."""
    names = dict.fromkeys(one.run.name for one, _ in incidents)
    cards = []
    for name in names:
        mine = [(one, picture) for one, picture in incidents if one.run.name == name]
        events = tuple(sorted((one for one, _ in mine), key=lambda one: one.onset))
        drawn = next(((one, picture) for one, picture in mine if picture), (None, None))
        cards.append(
            Card(events[0].where, verdicts[name], timeline(events[0].run, events), events, *drawn)
        )
    return cards
