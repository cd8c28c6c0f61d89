"""Read a study of branches: its plan, and one row a branch with what was measured."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.branch.judge.measured import KINDS, ParentEvent, measure
from stabkit.config import ConfigError, read_mapping
from stabkit.store.reader import StoredRun, open_run

PLAN = "branches.yaml"
COLUMNS = {
    "branch": "object",
    "kind": "object",
    "change": "object",
    "family": "object",
    "begin": "int64",
    "replicate": "int64",
    "event": "bool",
    "moved": "bool",
    "area": "float64",
    "depth": "float64",
    "recovered": "bool",
    "last": "float64",
}
PLANNED = tuple(COLUMNS)[1:6]  # written in the plan under the same names


class Planned(NamedTuple):
    """What `branches.yaml` says. `branches`: its rows, with the folder's name as `folder`.

    `opened`: the branches that were opened so far; each keeps the tables that it read.
    """

    study: Path
    parent: StoredRun
    metric: str
    event: ParentEvent
    horizon: int
    branches: list[dict[str, Any]]
    opened: dict[str, StoredRun]

    def branch(self, folder: str) -> StoredRun:
        """Return the branch in a folder of the study."""
        if folder not in self.opened:
            self.opened[folder] = open_run(self.study / folder).keeping()
        return self.opened[folder]


def read_plan(study: Path) -> Planned:
    """Read the plan of a study and open its parent. Raises ConfigError that names what is wrong."""
    file = study / PLAN
    content = read_mapping(file)
    try:
        event = ParentEvent(
            str(content["event"]["kind"]),
            int(content["event"]["onset"]),
            int(content["event"]["end"]),
        )
        folder, horizon = Path(str(content["parent"]["folder"])), int(content["horizon"])
        branches = [
            {name: one[name] for name in ("folder", *PLANNED)} for one in content["branches"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(str(file), [f"no plan of branches: {error}"]) from None
    if event.kind not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(
            str(file), [f"event.kind: {event.kind!r} is not judged in branches; those are: {known}"]
        )
    parent = _parent(study, folder, content.get("made_in")).as_of_now().keeping()
    return Planned(study, parent, Diagnosis(parent).accuracy.metric, event, horizon, branches, {})


def made_in(study: Path) -> dict[str, str]:
    """Return the line of the plan that tells where a relative folder of the parent begins.

    It is the present folder, as seen from the study, so that both can be moved together.
    """
    return {"made_in": os.path.relpath(Path.cwd(), study.resolve())}


def _parent(study: Path, folder: Path, made_in: object) -> StoredRun:
    """Open the parent: its folder below the one that the study was made in, or lies in.

    The present folder comes last: it may hold another run of that name.
    """
    beginnings = [study.resolve() / made_in] if isinstance(made_in, str) else []
    beginnings += [*study.resolve().parents, Path()]
    found = next((above / folder for above in beginnings if (above / folder).is_dir()), None)
    if found is None:
        raise ConfigError(str(study / PLAN), [f"parent.folder: there is no folder {folder}"])
    return open_run(found.resolve())


def branch_table(study: Path) -> pd.DataFrame:
    """Return one row a branch, with the columns of COLUMNS: see `Measured` for the last six.

    Branches that have not ended are left out; `attrs["unfinished"]` names them. Raises ConfigError
    for a plan that cannot be read, ValueError for a branch without evaluations.
    """
    return measured_table(read_plan(study))


def measured_table(plan: Planned) -> pd.DataFrame:
    """Return the rows of `branch_table` for a plan that was read."""
    rows, unfinished = [], []
    for planned in plan.branches:
        if not has_ended(plan.study / planned["folder"]):
            unfinished.append(planned["folder"])
            continue
        run, begin = plan.branch(planned["folder"]), int(planned["begin"])
        found = measure(run, plan.parent, plan.metric, plan.event, begin, plan.horizon)
        head = {name: planned[name] or "" for name in ("kind", "change", "family")}
        rows.append({**planned, **head, "branch": planned["folder"], **found._asdict()})
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    table.attrs["unfinished"] = unfinished
    return table


def has_ended(folder: Path) -> bool:
    """Return whether a branch trained to its end."""
    if not folder.is_dir():
        return False
    status = StoredRun(folder).status()
    return status is not None and status.state == "done"
