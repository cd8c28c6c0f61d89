"""`status.json`: what a run says of itself, and whether it may be believed."""

import errno
import json
import math
import socket
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from stabkit.rundir.atomic import atomic_write
from stabkit.rundir.overwrite import overwrite
from stabkit.rundir.own_files import NoFileError, read_file

State = Literal["waiting", "running", "preempted", "done", "failed"]
Standing = Literal["missing", "waiting", "running", "preempted", "lost", "done", "failed"]

# A running process writes its status at most once a second. An evaluation or a slow disk may delay
# it by minutes. Where the process itself cannot be seen, it counts as lost after this long.
LOST_AFTER_S = 600.0
# The reason of a run that counts as lost but may be alive.
AHEAD = (
    "its last heartbeat is later than this machine's clock; set the clock right, or delete its "
    "status"
)


@dataclass(frozen=True)
class Status:
    """The content of `status.json`.

    `step` of `steps` are done; `heartbeat` is a UTC time stamp; `events` counts each kind of
    confirmed event so far. `parts` is how many part files each table had when the run ended. A
    `preempted` run was stopped by a signal, with everything saved. `first` is the step at which the
    process began, since which `images_per_s` and `eta_s` are measured.
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
    parts: dict[str, int] = field(default_factory=dict)
    first: int = 0


def utc_now() -> str:
    """Return the time as text, to the millisecond."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")


def read_status(file: Path) -> Status | None:
    """Return None when there is no status yet. Raises ValueError that names a damaged file."""
    try:
        # JSON's NaN and Infinity become None, so that the other values can still be used.
        text = read_file(file).decode()
        return parse_status(json.loads(text, parse_constant=lambda _: None))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError, NoFileError, IsADirectoryError) as error:
        raise ValueError(f"{file}: not a status file ({error})") from None


def write_status(file: Path, status: Status) -> None:
    """Replace the status; on a full disk write a final one over the bytes of the last.

    Raises FileNotFoundError when the folder is gone: a run never creates its folder anew.
    """
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent}: the run's folder was deleted or moved")
    content = asdict(status) | {"heartbeat": utc_now(), "host": socket.gethostname()}
    # The next heartbeat follows in a second, so it is not synced. A final status is.
    durable = status.state != "running"
    text = json.dumps(content).encode()
    try:
        atomic_write(file, text, durable)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full and durable and file.exists()):
            raise
        overwrite(file, text)


def parse_status(content: Any) -> Status:
    """Check every value. Raises TypeError that says which one is of the wrong kind."""
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
    for name in ("events", "parts"):
        counts = getattr(status, name)
        if not all(type(count) is int for count in counts.values()):
            raise TypeError(f"{name} is {counts!r}")
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
    "parts": dict,
    "first": int,
}


def heard_lately(status: Status, written: float) -> bool:
    """Return whether a process on another machine wrote lately; its lock may not reach this one.

    `written` is the file's time, by the clock of the disk. The clock of the other machine may be
    wrong in either direction, so one of the two times near to now is enough.
    """
    return any(abs(age) < LOST_AFTER_S for age in _ages(status, written))


def is_ahead(status: Status, written: float) -> bool:
    """Return whether both times of another machine's status lie in the future.

    Nobody can tell then how long ago it was written.
    """
    ages = _ages(status, written)
    return bool(ages) and all(age <= -LOST_AFTER_S for age in ages)


def _ages(status: Status, written: float) -> list[float]:
    """Return the seconds since the heartbeat and since the file was written.

    The list is empty for a status of this machine, whose locks can be seen.
    """
    if status.host in ("", socket.gethostname()):
        return []
    try:
        said = datetime.fromisoformat(status.heartbeat)
        if said.tzinfo is None:
            return []
        return [time.time() - said.timestamp(), time.time() - written]
    except (ValueError, OverflowError):
        return []
