"""The notes on a run: what people wrote with `stabkit note`, and what its log tells by itself."""

from collections.abc import Iterable, Iterator

from stabkit.analyze.text import aligned, shortened
from stabkit.printing import counted
from stabkit.rundir import Note
from stabkit.store.reader import Run

RESUMED = "resumed"
LISTED = 20  # notes of a summary; more are counted
LONGEST = 100  # characters of a note in a summary


def noted(run: Run) -> list[Note]:
    """Return the notes of people and the resumes of the log, in the order of their steps."""
    return sorted([*run.notes(), *_resumes(run)], key=lambda note: note.step)


def _resumes(run: Run) -> Iterator[Note]:
    for entry in run.event_log():
        if entry.get("kind") == "resume" and type(entry.get("step")) is int:
            changed = entry.get("changed")
            inexact = isinstance(changed, list | dict) and bool(changed)
            text = f"{RESUMED}, not bit by bit" if inexact else RESUMED
            yield Note(entry["step"], text, str(entry.get("time", "")))


def notes_in_words(runs: Iterable[tuple[str, list[Note]]]) -> list[str]:
    """Return a table of notes as text, by run and step; nothing without notes."""
    found = [
        [f"{note.step:,}", run, shortened(note.text, LONGEST)]
        for run, notes in runs
        for note in notes
    ]
    if not found:
        return []
    rest = len(found) - LISTED
    more = f"\n... and {counted(rest, 'note')} more, in notes.jsonl of each run" if rest > 0 else ""
    return [aligned([["step", "run", "note"], *found[:LISTED]], left=(1, 2)) + more]
