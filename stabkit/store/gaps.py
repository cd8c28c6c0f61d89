"""Gaps: steps that a run trained but its tables do not hold, as after a crash or a deleted part."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stabkit.printing import counted
from stabkit.rundir import TABLES, LeftOutWarning, Status
from stabkit.store.reader import StoredRun
from stabkit.store.schema import METRIC

LISTED = 3  # at most so many stretches of steps are named

Steps = NDArray[np.int64]


def gaps(run: StoredRun, tables: Sequence[str] = TABLES, end: int | None = None) -> list[str]:
    """Return `find_gaps`, and warn (LeftOutWarning) of each gap."""
    found = find_gaps(run, tables, end)
    for gap in found:
        table, _, steps = gap.partition(": ")
        text = f"{run.path / table}: no rows of {steps}, which the run has trained"
        warnings.warn(text, LeftOutWarning, stacklevel=2)
    return found


def find_gaps(run: StoredRun, tables: Sequence[str] = TABLES, end: int | None = None) -> list[str]:
    """Return the table and the steps of each gap in words.

    A run of `stabkit train` must hold `layers` and `scalars` for every step, and `knn_heldout` for
    every `knn.every`-th step. It must do so up to `end`, if given; else up to its last step once it
    is `done` or `preempted`; else up to the last row of each table. The folder of a Monitor must
    hold every step from the first row of either table on, up to the last row or, once it is `done`
    or `preempted`, to its last step. Its evaluations come whenever the user likes, as do the rows
    of a converted log.
    """
    found = []
    for table in tables:
        if stretches := list(_missing(run, table, end)):
            named = ", ".join(f"{a} to {b}" if a < b else str(a) for a, b in stretches[:LISTED])
            if len(stretches) > LISTED:
                named += f" and {counted(len(stretches) - LISTED, 'more stretch')}"
            word = "steps" if named != str(stretches[0][0]) else "step"
            found.append(f"{table}: {word} {named}")
    return found


def _missing(run: StoredRun, table: str, end: int | None) -> Iterator[tuple[int, int]]:
    try:
        made = run.dir.read_meta()
    except (OSError, ValueError):
        made = {}
    if "converted" in made:
        return
    if not run.dir.is_of_train():
        yield from _missing_of_monitor(run, table)
        return
    every: Any = run.settings.get("knn.every", 1) if table == "evals" else 1
    if not isinstance(every, int) or every < 1:
        return
    held = _of_training(run, table)
    last = int(held[-1]) + 1 if len(held) else 0
    known = _trained(run) if end is None else end
    yield from _stretches(held, 0, every, last if known is None else known)
    final = _final(run) if table == "evals" and end is None else None
    if final is not None and final not in held:
        yield final, final


def _missing_of_monitor(run: StoredRun, table: str) -> Iterator[tuple[int, int]]:
    """Yield the gaps of a table of a Monitor, which writes layers and scalars at the same steps.

    So the table that begins first tells where the other one did. A table that lacks the series of
    every step, but holds others, was written by another program.
    """
    if table not in ("layers", "scalars"):
        return  # evaluations come when the user likes
    both = {name: _of_monitor(run, name) for name in ("layers", "scalars")}
    known = [steps for steps in both.values() if len(steps)]
    if known:
        first, last = min(int(s[0]) for s in known), max(int(s[-1]) for s in known)
        held = both[table]
        if not len(held) and table == "scalars" and len(run.scalars()):
            return
        end = max(_trained(run) or 0, int(held[-1]) if len(held) else last + 1)
        yield from _stretches(held, first, 1, end)


def _of_training(run: StoredRun, table: str) -> Steps:
    if table == "layers":
        return _unique(run.signals(["grad_norm"])["step"])
    frame = run.scalars() if table == "scalars" else run.evals(METRIC)
    return _unique(frame["step"])


def _of_monitor(run: StoredRun, table: str) -> Steps:
    if table == "layers":
        return _of_training(run, table)
    # The one scalar that a Monitor writes at every step, if it measures layers.
    scalars = run.scalars()
    return _unique(scalars["step"][scalars["name"] == "nonfinite_layers"])


def _unique(steps: Any) -> Steps:
    return np.unique(np.asarray(steps, dtype=np.int64))


def _trained(run: StoredRun) -> int | None:
    """Return how many steps were trained, if all their rows must be written by now."""
    status = _status(run)
    return status.step if status and status.state in ("done", "preempted") else None


def _final(run: StoredRun) -> int | None:
    """Return the step after the last, which is evaluated too, unless the run diverged there."""
    status = _status(run)
    if status is None or status.state != "done" or status.step < status.steps:
        return None
    return None if (status.reason or "").startswith("diverged") else status.step


def _status(run: StoredRun) -> Status | None:
    try:
        return run.dir.last_status()
    except OSError:
        return None


def _stretches(held: Steps, first: int, every: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last step of each stretch that is not `held`.

    The steps in question are `first`, `first + every` and so on, below `end`.
    """
    inside = held[(held >= first) & (held < end) & ((held - first) % every == 0)]
    after = first + every * -(-max(0, end - first) // every)
    marks = np.concatenate([[first - every], inside, [after]])
    for i in np.flatnonzero(np.diff(marks) > every):
        yield int(marks[i]) + every, int(marks[i + 1]) - every
