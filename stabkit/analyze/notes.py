"""The notes on a run: what people wrote with `stabkit note`, and what its record tells."""

from collections.abc import Iterable, Iterator

import numpy as np

from stabkit.analyze.learning_rate import learning_rate
from stabkit.analyze.text import aligned, shortened
from stabkit.printing import counted
from stabkit.rundir import Note
from stabkit.store.reader import StoredRun

RESUMED = "resumed"
LISTED = 20  # notes of a summary; more are counted
LONGEST = 100  # characters of a note in a summary
JUMP = 1.25  # a learning rate changes by this factor or more from one value to the next,
CALM = 3  # and by a quarter of it at most (of the logarithm) at so many values on each side
DECAYED = 1e-3  # of the highest rate: from there on down a schedule ends, and nothing is trained
MOST_JUMPS = 8  # of a run; more are a schedule
TOLD_JUMPS = 4  # of all runs in a summary: a schedule with restarts jumps in each of them
_RATE = "lr "


def noted(run: StoredRun) -> list[Note]:
    """Return the notes of people, and resumes, branches and jumps of the rate, by their steps."""
    found = [*run.notes(), *_resumes(run), *_branches(run), *_rate_jumps(run)]
    return sorted(found, key=lambda note: note.step)


def _resumes(run: StoredRun) -> Iterator[Note]:
    for entry in run.log_entries():
        if entry.get("kind") == "resume" and type(entry.get("step")) is int:
            changed = entry.get("changed")
            inexact = isinstance(changed, list | dict) and bool(changed)
            text = f"{RESUMED}, not bit by bit" if inexact else RESUMED
            yield Note(entry["step"], text, str(entry.get("time", "")))


def _branches(run: StoredRun) -> Iterator[Note]:
    for entry in run.log_entries():
        if entry.get("kind") == "branch" and type(entry.get("begin")) is int:
            change = entry.get("change") or "nothing changed"
            yield Note(entry["begin"], f"branch: {change}", str(entry.get("time", "")))


def _rate_jumps(run: StoredRun) -> Iterator[Note]:
    for step, before, after in rate_jumps(run):
        yield Note(step, f"{_RATE}{before:.3g} to {after:.3g}", "")


def rate_jumps(run: StoredRun) -> list[tuple[int, float, float]]:
    """Return where the learning rate jumps: step, rate before and after.

    No smooth schedule and no warm-up does so. A fall below `DECAYED` is the end of one.
    """
    recorded = learning_rate(run.scalars())
    steps, rates = recorded.index.tolist(), recorded.tolist()
    change = np.abs(np.diff(np.log(rates)))
    jumps = [
        at
        for at in np.flatnonzero(change >= np.log(JUMP)).tolist()
        if at >= CALM
        and rates[at + 1] >= DECAYED * max(rates)
        and (np.delete(change[at - CALM : at + CALM + 1], CALM) <= change[at] / 4).all()
    ]
    found = [(steps[at + 1], rates[at], rates[at + 1]) for at in jumps]
    return found if len(found) <= MOST_JUMPS else []


def notes_in_words(runs: Iterable[tuple[str, list[Note]]]) -> list[str]:
    """Return a table of notes as text, by run and step; nothing without notes.

    The first jumps of the rate are told and the others counted, so that they hide no other notes.
    """
    every = [(run, note) for run, notes in runs for note in notes]
    jumps = [i for i, (_, note) in enumerate(every) if _is_jump(note)]
    untold = set(jumps[TOLD_JUMPS:])
    found = [
        [f"{note.step:,}", run, shortened(note.text, LONGEST)]
        for i, (run, note) in enumerate(every)
        if i not in untold
    ]
    if not found:
        return []
    rest = len(found) - LISTED
    more = f"\n... and {counted(rest, 'note')} more" if rest > 0 else ""
    if untold:
        more += f"\n... and {counted(len(untold), 'jump')} of the learning rate more"
    return [aligned([["step", "run", "note"], *found[:LISTED]], left=(1, 2)) + more]


def _is_jump(note: Note) -> bool:
    return note.text.startswith(_RATE) and not note.time  # what people wrote has a time
