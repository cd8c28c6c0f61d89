"""What `status.json` says, and whether it may be believed."""

import math
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

State = Literal["waiting", "running", "preempted", "done", "failed"]
Standing = Literal["missing", "waiting", "running", "preempted", "lost", "done", "failed"]

# A running process writes its status every step. An evaluation or a slow disk may hold it up for
# minutes; whoever cannot see the process itself calls it lost after this long.
LOST_AFTER_S = 600.0


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


def heard_of_lately(status: Status) -> bool:
    """Whether a process on another machine wrote lately: its lock may not be seen from here."""
    if status.host in ("", socket.gethostname()):
        return False
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(status.heartbeat)
    except (ValueError, TypeError):  # no time stamp, or one without a zone
        return False
    # from a clock that was set back, or one that is far ahead, nothing follows
    return abs(age.total_seconds()) < LOST_AFTER_S
