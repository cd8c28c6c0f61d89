"""`branches.yaml`: the plan of a study, written before anything trains."""

from pathlib import Path
from typing import Any

from stabkit.branch.judge.branch_table import PLAN, made_in
from stabkit.branch.study import BranchStudy, config_of_branch, folder_of
from stabkit.config import ConfigError, read_mapping, run_id
from stabkit.rundir import ForeignFolderError, atomic_write
from stabkit.yamlio import dump_yaml

BEFORE = ("states", ".lock")  # what may be there before the plan


def write_plan(study: BranchStudy, folder: Path, kick: float | None) -> None:
    """Write the plan; `kick` is the size of the shams of that family."""
    content = _content(study, kick) | made_in(folder)
    atomic_write(folder / PLAN, dump_yaml(content).encode())


def read_kick(study: BranchStudy, folder: Path) -> tuple[bool, float | None]:
    """Return whether the folder holds this study already, and the size of its kicks.

    Raises ForeignFolderError for a folder that holds anything else.
    """
    file = folder / PLAN
    if not file.is_file():
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        others = [name for name in names if name not in BEFORE and not name.startswith(".")]
        if others or (folder.exists() and not folder.is_dir()):
            raise ForeignFolderError(
                f"{folder}: holds {', '.join(others[:3]) or 'a file'}, and no study; name another "
                "folder with -o"
            )
        return False, None
    try:
        there = read_mapping(file)
    except ConfigError as error:
        raise ForeignFolderError(str(error)) from None
    kick = there.get("kick")
    asked = _content(study, kick)
    if wrong := [key for key in asked if there.get(key) != asked[key]]:
        raise ForeignFolderError(
            f"{folder}: holds another study, other in {', '.join(wrong)}; name another folder "
            "with -o"
        )
    return True, kick


def _content(study: BranchStudy, kick: float | None) -> dict[str, Any]:
    event = study.event
    branches = [
        {
            "folder": folder_of(branch, config_of_branch(study, branch, kick)),
            "kind": branch.kind,
            "change": branch.change,
            "family": branch.family,
            "begin": branch.begin,
            "replicate": branch.replicate,
        }
        for branch in study.branches
    ]
    found: dict[str, Any] = {
        "parent": {"folder": str(study.parent), "run": run_id(study.config)},
        "at": study.at,
        "event": {
            "kind": event.kind,
            "onset": event.onset,
            "end": event.end,
            "bottom": study.bottom,
            "layer": event.layer,
        },
        "horizon": study.horizon,
        "branches": branches,
    }
    return found if kick is None else found | {"kick": kick}
