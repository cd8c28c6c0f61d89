"""`notes.jsonl`: what people wrote about a run, one JSON object a line.

It is a file of its own, because a training rewrites its log when it resumes, and a note may come at
that moment or from another machine, whose appends to the same file could overwrite each other.
"""

from dataclasses import dataclass
from pathlib import Path

from stabkit.rundir.log import append_entry, read_entries

LONGEST = 500  # characters of a note


@dataclass(frozen=True)
class Note:
    """What somebody wrote about a step, or what a process did there."""

    step: int
    text: str
    time: str = ""


def append_note(file: Path, step: int, text: str) -> None:
    """Append one note, as a single write. Raises OSError, and LinkedError for a link."""
    append_entry(file, "note", step, {"text": text})


def read_notes(file: Path) -> list[Note]:
    """Return the notes in the order of their steps; a LeftOutWarning counts lines that are none."""
    found = [
        Note(entry["step"], entry["text"], str(entry.get("time", "")))
        for entry in read_entries(file)
        if type(entry.get("step")) is int and isinstance(entry.get("text"), str)
    ]
    return sorted(found, key=lambda note: note.step)
