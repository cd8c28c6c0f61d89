"""`events.jsonl`: what happened to a run, one JSON object a line."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from stabkit.printing import counted
from stabkit.rundir.atomic import atomic_write
from stabkit.rundir.find import left_out
from stabkit.rundir.own_files import append_to, read_file
from stabkit.rundir.status import utc_now

LIFECYCLE = ("start", "resume", "preempted", "done", "failed")  # what a process did


def append_event(file: Path, kind: str, step: int | None, facts: dict[str, Any]) -> None:
    """Append one line. Raises OSError when the disk is full; no part of the line is left then."""
    event = {"time": utc_now(), "kind": kind} | ({} if step is None else {"step": step}) | facts
    line = (json.dumps(event) + "\n").encode()
    with append_to(file) as log:  # a single write, so that lines of two processes never mix
        end = log.seek(0, os.SEEK_END)
        if log.write(line) < len(line):
            log.truncate(end)  # the next line would be appended to a torn one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def read_events(file: Path) -> list[dict[str, Any]]:
    """Read every complete line. A last line that a kill tore is left out.

    A LeftOutWarning counts all other lines that are no event.
    """
    if not file.exists():
        return []
    events, wrong = [], []
    text = read_file(file).decode(errors="replace")
    *lines, torn = text.split("\n")
    for number, line in enumerate([*lines, torn], start=1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            events.append(event)
        elif number <= len(lines):
            wrong.append(number)
    if wrong:
        left_out(file, f"no events; the first is line {wrong[0]}", counted(len(wrong), "line"))
    return events


def trim_events(file: Path, step: int) -> None:
    """Drop what was observed at or after `step`, and any torn line, before a run is resumed."""

    def is_kept(event: dict[str, Any]) -> bool:
        at = event.get("step")
        return event.get("kind") in LIFECYCLE or not isinstance(at, int) or at < step

    kept = [event for event in read_events(file) if is_kept(event)]
    atomic_write(file, "".join(json.dumps(event) + "\n" for event in kept).encode())
