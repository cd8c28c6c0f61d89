"""The log of a run, `events.jsonl`: what its process did and saw, an entry a line in JSON."""

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


def append_entry(file: Path, kind: str, step: int | None, facts: dict[str, Any]) -> None:
    """Append one line. Raises OSError when the disk is full; no part of the line is left then."""
    entry = {"time": utc_now(), "kind": kind} | ({} if step is None else {"step": step}) | facts
    line = (json.dumps(entry) + "\n").encode()
    with append_to(file) as log:  # a single write, so that lines of two processes never mix
        end = log.seek(0, os.SEEK_END)
        if end and not _ends_whole(file, end):
            line = b"\n" + line
        if log.write(line) < len(line):
            log.truncate(end)  # the next line would be appended to a torn one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _ends_whole(file: Path, end: int) -> bool:
    """Return whether the last line is complete: a kill may have torn it."""
    with file.open("rb") as log:
        log.seek(end - 1)
        return log.read(1) == b"\n"


def read_entries(file: Path) -> list[dict[str, Any]]:
    """Read every complete line. A last line that a kill tore is left out.

    A LeftOutWarning counts all other lines that are no entry.
    """
    if not file.exists():
        return []
    entries, wrong = [], []
    text = read_file(file).decode(errors="replace")
    *lines, torn = text.split("\n")
    for number, line in enumerate([*lines, torn], start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)
        elif number <= len(lines):
            wrong.append(number)
    if wrong:
        left_out(file, f"no entries; the first is line {wrong[0]}", counted(len(wrong), "line"))
    return entries


def trim_entries(file: Path, step: int) -> None:
    """Drop what was observed at or after `step`, and any torn line, before a run is resumed."""

    def is_kept(entry: dict[str, Any]) -> bool:
        at = entry.get("step")
        return entry.get("kind") in LIFECYCLE or not isinstance(at, int) or at < step

    kept = [entry for entry in read_entries(file) if is_kept(entry)]
    atomic_write(file, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
