"""Tell what is new in the rows of `stabkit status`: a run that ended, a confirmed event."""

from collections.abc import Mapping, Sequence
from typing import Any

from stabkit.event_kinds import ONLINE_KINDS
from stabkit.sweep.status import Row
from stabkit.sweep.table import counted_events

STATES = ("failed", "lost", "unreadable", "preempted", "done")
KINDS = (*ONLINE_KINDS, *STATES)


def news(before: Mapping[str, Row], rows: Sequence[Row], folder: str) -> list[dict[str, Any]]:
    """Return a message for each kind of event that a run has more of, and each state that ended it.

    `before` holds earlier rows by their paths. A run that is not among them has just appeared, and
    all that it has is new.
    """
    found = []
    for row in rows:
        was = before.get(row.path)
        counts = {} if was is None else was.events
        for kind, number in row.events.items():
            if number > counts.get(kind, 0):
                found.append(_message(row, kind, f"{counted_events(number, kind)} so far", folder))
        if row.state in STATES and (was is None or was.state != row.state):
            words = f"{row.state}: {row.reason}" if row.reason else row.state
            found.append(_message(row, row.state, words, folder))
    return found


def _message(row: Row, kind: str, words: str, folder: str) -> dict[str, Any]:
    return {
        "text": f"stabkit: {row.run}: {words} (step {row.step:,})",
        "run": row.path or folder,
        "kind": kind,
        "state": row.state,
        "step": row.step,
    }
