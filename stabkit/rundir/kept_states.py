"""The ring of whole states that a run keeps: which files there are, and which one goes next.

A kept state is a file `states/step-<step>.pt`, or `states/pinned-<step>.pt`, which the ring never
removes. The ring knows nothing but these names, so a kill cannot leave anything inconsistent.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stabkit.rundir.atomic import whole
from stabkit.rundir.own_files import own_folder

FREE = 2  # the next state and, in a room as large, what else the run writes meanwhile
_NAME = re.compile(r"(step|pinned)-(\d{8,18})\.pt")


class KeptState(NamedTuple):
    """A state before the update `step`."""

    step: int
    pinned: bool
    path: Path


def kept_states(folder: Path) -> list[KeptState]:
    """Return the states in a folder in order of steps; none if there is no such folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(match, folder / name) for name in names if (match := _NAME.fullmatch(name))]
    return sorted(KeptState(int(m[2]), m[1] == "pinned", path) for m, path in found)


class Ring:
    """At most `most` states, and as many pinned ones; recent states are `every` steps apart.

    Older ones are farther apart: their distances from the present grow by a constant factor. With
    12 states over 10,000 * `every` steps, an event n steps ago has a state at most 4 n + `every`
    steps ago.
    """

    def __init__(self, folder: Path, most: int, every: int) -> None:
        self.folder, self.most, self.every = folder, most, every

    def place(self, step: int) -> Path:
        """Return the file of the state before the update `step`; a pinned one stays pinned."""
        pinned = self.folder / f"pinned-{step:08}.pt"
        return pinned if pinned.exists() else self.folder / f"step-{step:08}.pt"

    def link(self, file: Path, step: int) -> None:
        """Keep `file` as the state of `step`: by a hard link, or by a copy where links fail.

        A link costs no time and no room. It is safe because `file` is only ever replaced as a
        whole, never changed. Raises OSError.
        """
        own_folder(self.folder)
        place = self.place(step)
        place.unlink(missing_ok=True)  # left by a run that then resumed at an earlier step
        try:
            os.link(file, place, follow_symlinks=False)
        except OSError:
            with file.open("rb") as source, whole(place, durable=False) as copy:
                shutil.copyfileobj(source, copy)
        self.thin(step)

    def thin(self, now: int) -> None:
        """Remove states until `most` are left, not counting those after step `now`."""
        loose = [state for state in kept_states(self.folder) if not state.pinned]
        past = [state for state in loose if state.step <= now]
        while len(past) > self.most:
            past.pop(dispensable([state.step for state in past], self.every)).path.unlink()

    def pin_before(self, step: int) -> list[KeptState]:
        """Pin the last two states at or before `step`; return those that were not pinned before.

        Two, since the step at which an event began is an estimate. Raises ValueError if there is
        none, or if more than `most` would be pinned.
        """
        states = kept_states(self.folder)
        before = [state for state in states if state.step <= step][-2:]
        if not before:
            raise ValueError(f"{self.folder}: no state is kept of step {step} or before")
        new = [state for state in before if not state.pinned]
        pinned = sum(state.pinned for state in states)
        if pinned + len(new) > self.most:
            raise ValueError(
                f"{self.folder}: {pinned} states are pinned already; at most {self.most} may be"
            )
        for state in new:
            state.path.rename(self.folder / f"pinned-{state.step:08}.pt")
        return new

    def leave_room(self, state: Path) -> int:
        """Remove states until the disk has room for FREE files as large as `state`.

        Pinned ones stay, and the last one. Returns how many were removed.
        """
        if self.folder.is_symlink():  # others' files: see `own_folder`
            return 0
        room, removed = FREE * state.stat().st_size, 0
        while shutil.disk_usage(self.folder.parent).free < room:
            loose = [state.step for state in kept_states(self.folder) if not state.pinned]
            if len(loose) < 2 or not self.give_up_one():
                break
            removed += 1
        return removed

    def give_up_one(self) -> bool:
        """Remove the most dispensable state that is not pinned; return False if there is none."""
        loose = [state for state in kept_states(self.folder) if not state.pinned]
        if not loose:
            return False
        at = dispensable([s.step for s in loose], self.every) if len(loose) > 1 else 0
        with suppress(FileNotFoundError):
            loose[at].path.unlink()
        return True


def dispensable(steps: Sequence[int], every: int) -> int:
    """Return the index of the step that is cheapest to lose, of two or more ascending steps.

    The last step, which is the present, is never returned. Without step i, an event just before
    step i+1 must be replayed from step i-1, so the price of losing step i is the age of step i-1
    divided by that of the event. Step 0, the start of the run, counts as the step before the first,
    because it can always be computed again.
    """
    now = steps[-1]
    ages = [now + every, *(now - step + every for step in steps)]
    prices = [ages[i] / ages[i + 2] for i in range(len(steps) - 1)]
    return prices.index(min(prices))
