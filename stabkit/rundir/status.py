"""What `status.json` says, and whether it may be believed."""

import math
import socket
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

State = Literal["waiting", "running", "preempted", "done", "failed"]
Standing = Literal["missing", "waiting", "running", "preempted", "lost", "done", "failed"]

# A running process writes its status every step. An evaluation or a slow disk may hold it up for
# minutes; whoever cannot see the process itself calls it lost after this long.
LOST_AFTER_S = 600.0
# Why a run is lost that may be alive.
AHEAD = (
    "its last word is later than this machine's clock; put the clock right, or delete its status"
)


@dataclass(frozen=True)
class Status:
    """What `status.json` holds. `step` of `steps` are done; `heartbeat` is a UTC time stamp.

    `preempted`: stopped by a signal, with everything saved. `events`: how many of each kind so far.
    """

    state: State
    step: int = 0
    steps: int = 0
    heartbeat: str = ""
    host: str = ""
    images_per_s: float | None = None
    eta_s: float | None = None
    knn: float | None = None
    reason: str | None = None
    events: dict[str, int] = field(default_factory=dict)


def parse_status(content: Any) -> Status:
    """Raises TypeError that says which value is of another kind than it should."""
    if not isinstance(content, dict):
        raise TypeError("no JSON object")
    status = Status(**{k: content[k] for k in Status.__dataclass_fields__ if k in content})
    for name, kinds in _KINDS.items():
        value = getattr(status, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise TypeError(f"{name} is {value}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise TypeError(f"{name} is too large")
    if status.state not in get_args(State):
        raise TypeError(f"state is {status.state!r}")
    if not all(type(count) is int for count in status.events.values()):
        raise TypeError(f"events is {status.events!r}")
    return status


_NUMBER = (int, float, type(None))
_KINDS: dict[str, Any] = {
    "state": str,
    "step": int,
    "steps": int,
    "heartbeat": str,
    "host": str,
    "images_per_s": _NUMBER,
    "eta_s": _NUMBER,
    "knn": _NUMBER,
    "reason": (str, type(None)),
    "events": dict,
}


def heard_of_lately(status: Status, written: float) -> bool:
    """Whether a process on another machine wrote lately: its lock may not be seen from here.

    `written`: when the file was, by the clock of the disk. The clock of that machine may be wrong,
    in either direction; one of the two near to now is enough.
    """
    return any(abs(age) < LOST_AFTER_S for age in _ages(status, written))


def is_ahead(status: Status, written: float) -> bool:
    """Whether another machine wrote later than it is here: then nobody can tell how long ago."""
    ages = _ages(status, written)
    return bool(ages) and all(age <= -LOST_AFTER_S for age in ages)


def _ages(status: Status, written: float) -> list[float]:
    """Seconds since the last word; none of a machine whose locks are seen from here."""
    if status.host in ("", socket.gethostname()):
        return []
    try:
        said = datetime.fromisoformat(status.heartbeat)
        if said.tzinfo is None:
            return []
        return [time.time() - said.timestamp(), time.time() - written]
    except (ValueError, OverflowError):
        return []
