"""Branches of a training loop of one's own: go back, change one thing, compare with controls."""

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from stabkit.branch.judge.attribution import Attribution, judge_branches
from stabkit.branch.judge.branch_figures import write_study
from stabkit.branch.judge.branch_table import (
    PLAN,
    has_ended,
    made_in,
    measured_table,
    read_plan,
)
from stabkit.branch.judge.measured import KINDS
from stabkit.branch.nudges import distance, kick, nudge
from stabkit.branch.protocol import FIRST, LEAD, PLACEBOS, REPLICATES, SHAMS
from stabkit.config import read_mapping
from stabkit.monitor.ranks import world_size
from stabkit.replay.plan import Event, find_event, recorded
from stabkit.replay.proof import Proof, ReplayDiffersError
from stabkit.replay.state_ring import StateRing
from stabkit.rundir import atomic_write
from stabkit.store.reader import StoredRun
from stabkit.yamlio import dump_yaml

log = logging.getLogger("stabkit")

LEAD_STEPS = 20  # from where branches begin to the onset, in a run without evaluations
MEASURED = ".measured"  # the folder of the runs that measure how far a change moves the weights
CHANGED = "changed"  # the family of all changes: they are compared with kicks of their size

Train = Callable[[Path, int, int], object]
Undo = Callable[[], object]
Change = Callable[[], Undo | None]


class OwnBranch(NamedTuple):
    """A row of the plan, and what makes the branch: a change, and a nudge or a kick."""

    row: dict[str, Any]
    change: Change | None
    number: int | None  # of the nudge, or of the kick of a sham


def branch_loop(
    ring: StateRing,
    train: Train,
    run: str | Path,
    at: str,
    changes: Mapping[str, Change],
    folder: str | Path,
    *,
    begin: int | None = None,
    end: int | None = None,
) -> Attribution:
    """Tell which changes would have prevented an event of a loop of one's own.

        def train(folder, first, end):
            with stabkit.Monitor(model, optimizer, folder, first_step=first):
                for step in range(first, end):
                    ...

        found = stabkit.branch_loop(
            ring, train, "runs/mine", "burst", {"half the rate": halve}, "branches/mine"
        )
        print(found.text())

    Goes back to a state before the event again and again, and calls `train(folder, first, end)`,
    which makes the steps `first` to `end` - 1 with a Monitor in `folder`: once as it was (control),
    8 times with the weights moved by one rounding each (placebos), 12 times with all weights kicked
    as far as the strongest change moves them (shams), and 3 times with each change. A change gets
    no credit for what placebos or shams prevent as well: docs/branches.md.

    Arguments:
    - `ring`: the states of the run. It must hold all that the loop needs to go on from a step.
    - `run`: the folder of the run in which the event was seen.
    - `at`: what is judged, as `dip`, `burst:2` or a step; see `stabkit branch --help`.
    - `changes`: functions by name. Each changes the training once the state is restored, and
      returns a function that takes back what the ring does not restore, or None.
    - `folder`: where the branches are written. The same call goes on where it was stopped.
    - `begin`, `end`: the step of the state, and the step before which branches stop. By default the
      newest state that lies 4 evaluations (20 steps if there are none) before the onset, and as
      long after the event as it lasted.

    A run without evaluations is judged by bursts, spikes of the loss and non-finite values; the
    price of a change is not known then. Afterwards the model is that of the last branch;
    `ring.restore` goes back.

    Raises ValueError or ConfigError when the request is wrong, or when `train` leaves no run that
    ended.
    """
    if world_size() > 1:
        raise ValueError(f"branch_loop: is for one process, this is one of {world_size()}")
    folder, parent = Path(folder), Path(run)
    record, last = recorded(parent)
    event = find_event(record, at, last)
    every = _every(record)
    kinds = KINDS if every else [kind for kind in KINDS if kind not in ("dip", "step")]
    if event.kind not in kinds:
        of = "" if every else " of a run without evaluations"
        raise ValueError(f"{at}: no branch{of} is judged by a {event.kind}; by {', '.join(kinds)}")
    lead = LEAD * every or LEAD_STEPS
    begin = _begin(ring, event, begin, lead)
    end = min(last + 1, event.end + max(lead, event.end - event.onset)) if end is None else end
    if not event.onset < end <= last + 1:
        raise ValueError(
            f"end {end}: should be a step after the onset, {event.onset + 1} to {last + 1}"
        )
    branches = _branches(changes, begin)
    plan = {
        "parent": {"folder": str(parent)}, "at": at,
        "event": {"kind": event.kind, "onset": event.onset, "end": event.end},
        "horizon": end, "branches": [branch.row for branch in branches],
    }  # fmt: skip
    size = _known_kick(folder, plan)
    with ring.still():
        if size is None:
            size = _kick_size(ring, train, changes, folder, begin)
            written = plan | {"kick": size} | made_in(folder)
            atomic_write(folder / PLAN, dump_yaml(written).encode())
        for branch in branches:
            _train_branch(ring, train, branch, folder, size, begin, end)
            if branch.row["kind"] == "control":
                _compare_control(record, folder / branch.row["folder"], begin, end)
    read = read_plan(folder)
    table = measured_table(read)
    judged = judge_branches(table)
    write_study(read, table, judged)
    return judged


def _every(run: StoredRun) -> int:
    """Return the usual number of steps between evaluations; 0 without any."""
    steps = np.unique(run.evals()["step"])
    return int(np.median(np.diff(steps))) if len(steps) > 1 else 0


def _begin(ring: StateRing, event: Event, begin: int | None, lead: int) -> int:
    """Return the step of the state with which branches begin. Raises ValueError without one."""
    steps = ring.steps
    fitting = [step for step in steps if step <= event.onset - lead]
    if begin is None and fitting:
        return fitting[-1]
    if begin is not None and begin in steps and begin <= event.onset:
        return begin
    there = ", ".join(map(str, steps)) or "none"
    wanted = f"at step {begin}" if begin is not None else f"at or before {event.onset - lead}"
    raise ValueError(
        f"{ring.folder}: no state {wanted}, before the {event.kind} at step {event.onset}; there "
        f"are {there}; name one of them as begin"
    )


def _branches(changes: Mapping[str, Change], begin: int) -> list[OwnBranch]:
    if not changes:
        raise ValueError("changes: none is given; name at least one, as {'half the rate': halve}")
    found: list[OwnBranch] = []

    def add(name: str, kind: str, words: str, replicate: int, change: Change | None) -> None:
        family = CHANGED if kind in ("sham", "intervention") else ""
        row = {"folder": name, "kind": kind, "change": words, "family": family, "begin": begin,
               "replicate": replicate}  # fmt: skip
        found.append(OwnBranch(row, change, len(found) if found else None))

    add("control", "control", "", 0, None)
    for i in range(PLACEBOS):
        add(f"placebo-{i}", "placebo", "", i, None)
    for i in range(SHAMS):
        add(f"sham-{i}", "sham", "a kick in a random direction", i, None)
    for words, change in changes.items():
        for i in range(REPLICATES):
            add(f"change-{_slug(words)}-{i}", "intervention", words, i, change)
    names = [branch.row["folder"] for branch in found]
    if len(set(names)) < len(names):
        raise ValueError(f"changes: {', '.join(changes)}: two of the names give the same folder")
    return found


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _known_kick(folder: Path, plan: dict[str, Any]) -> float | None:
    """Return the size of the kicks if the folder holds this study already.

    Raises ValueError for a folder that holds anything else.
    """
    file = folder / PLAN
    if file.is_file():
        there = read_mapping(file)
        if wrong := [key for key in plan if there.get(key) != plan[key]]:
            raise ValueError(f"{folder}: holds another study, other in {', '.join(wrong)}")
        return float(there["kick"])
    folder.mkdir(parents=True, exist_ok=True)
    if any(path.name != MEASURED for path in folder.iterdir()):
        raise ValueError(f"{folder}: holds something already, and no study; name another folder")
    return None


def _train_branch(
    ring: StateRing,
    train: Train,
    branch: OwnBranch,
    folder: Path,
    size: float,
    begin: int,
    end: int,
) -> None:
    """Train a branch from the restored state, unless it has ended before."""
    path = folder / branch.row["folder"]
    if has_ended(path):
        return
    shutil.rmtree(path, ignore_errors=True)
    with _changed(ring, begin, branch.change):
        if branch.row["kind"] == "sham":
            kick(_trained(ring), size, branch.number or 0)
        elif branch.number is not None:
            nudge(_trained(ring), branch.number)
        train(path, begin, end)
    if not has_ended(path):
        raise ValueError(
            f"{path}: train left no run there that ended; give its folder to a Monitor with "
            f"first_step={begin}, and close it"
        )


@contextmanager
def _changed(ring: StateRing, begin: int, change: Change | None) -> Iterator[None]:
    """Put the state of `begin` back, make the change, and take back what it did."""
    ring.restore(begin)
    undo = change() if change else None
    try:
        yield
    finally:
        if undo:
            undo()


def _kick_size(
    ring: StateRing, train: Train, changes: Mapping[str, Change], folder: Path, begin: int
) -> float:
    """Return how far the strongest change moves the weights, away from the control, at first."""
    control = _weights_after(ring, train, None, folder, begin)
    moved = {
        words: distance([
            one - other
            for one, other in zip(
                _weights_after(ring, train, change, folder, begin), control, strict=True
            )
        ])
        for words, change in changes.items()
    }  # fmt: skip
    size = max(moved.values())
    if not 0 < size < np.inf:
        raise ValueError(
            f"changes: in the first {FIRST} updates from step {begin} they move the weights by "
            f"{size:g}, so that no kick of that size can be made; begin nearer to the event"
        )
    return size


def _weights_after(
    ring: StateRing, train: Train, change: Change | None, folder: Path, begin: int
) -> list[Tensor]:
    """Return the weights after the first updates with a change."""
    path = folder / MEASURED
    shutil.rmtree(path, ignore_errors=True)
    with _changed(ring, begin, change):
        train(path, begin, begin + FIRST)
    shutil.rmtree(path, ignore_errors=True)
    return [parameter.detach().cpu().clone() for parameter in ring.model.parameters()]


def _trained(ring: StateRing) -> dict[str, Tensor]:
    """Return the weights that are trained, by name; what is written into them is in the model.

    Frozen ones are left out: a kick of a frozen backbone is no training of this model.
    """
    return {name: p.detach() for name, p in ring.model.named_parameters() if p.requires_grad}


def _compare_control(record: StoredRun, control: Path, begin: int, end: int) -> None:
    """Warn if the control is not the run bit for bit: it is another placebo then."""
    try:
        Proof(record, control).compare(begin, end)
    except ReplayDiffersError as error:
        log.warning(
            "stabkit: the control %s: the loop does not repeat itself bit for bit, so the control "
            "counts as another placebo",
            error,
        )
