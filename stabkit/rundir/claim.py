"""Ownership of folders: every command asks before it writes into one, and before it locks it."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from stabkit.printing import first_of
from stabkit.rundir.find import TABLES
from stabkit.rundir.own_files import read_file
from stabkit.rundir.run_dir import RunDir, of_train
from stabkit.yamlio import parse_yaml

Holder = Literal["nobody", "run", "nameless", "imported", "converted", "monitor", "others"]

# What may lie in a folder before its run begins: a lock, the output of a batch system or a shell,
# and the temporary files of killed processes.
_BEFORE = re.compile(
    r"\.lock|log\.txt|slurm-.+\.(out|err)|\.DS_Store"
    r"|\.(config\.yaml|status\.json|meta\.json|events\.jsonl)\..+"
)
MARKED_WITHIN = 1 << 16  # bytes
_KEPT = (
    *("config.yaml", "meta.json", "status.json", "events.jsonl", "notes.jsonl", "job.json"),
    *("log.txt", ".lock"),
)
_SECTIONS = {"data", "model", "train", "knn", "runtime"}  # every config.yaml of a run has these
_ELSEWHERE = "name another folder"
# The first line of a config.yaml that a Monitor wrote: the settings of somebody's own training.
MONITOR_SETTINGS = "# the settings given to stabkit.Monitor(config=...)"


class ForeignFolderError(ValueError):
    """The folder holds something other than what the command was asked to work on."""


def claim_for_run(rundir: RunDir, differences: Callable[[Path], Sequence[str]]) -> None:
    """Raise ForeignFolderError unless the folder is free or holds this very run.

    `differences` takes a `config.yaml` and lists how its run differs from the requested one.
    """
    holder = _holder(rundir)
    if holder == "nobody":
        return
    if holder != "run":
        raise _refused(rundir, _WORDS[holder](rundir))
    if found := differences(rundir.config_file):
        raise ForeignFolderError(
            f"{rundir.path}: is the folder of another run; {_ELSEWHERE}\n"
            + "\n".join(f"  - {line}" for line in found)
        )
    begun = rundir.checkpoint_file.exists() or of_train(_meta(rundir))
    if not begun and _parts(rundir):
        raise _refused(rundir, "holds rows that this run did not record")


def claim_for_import(rundir: RunDir) -> None:
    """Raise ForeignFolderError unless the folder is free."""
    holder = _holder(rundir)
    if holder in ("run", "nameless", "imported"):
        raise _refused(rundir, "is a run already")
    if holder != "nobody":
        raise _refused(rundir, _WORDS[holder](rundir))


def claim_for_monitor(rundir: RunDir) -> None:
    """Raise ForeignFolderError if the folder holds a run, a converted log or a user's own log.

    Other files are allowed: a training script keeps its own beside what the Monitor records.
    """
    holder = _holder(rundir)
    if holder == "nobody":
        return
    if of_train(_meta(rundir)) or (holder == "run" and _is_settings(rundir.config_file)):
        raise _refused(rundir, "holds a run of `stabkit train` or `stabkit sweep`")
    if holder in ("imported", "converted"):
        raise _refused(rundir, _WORDS[holder](rundir))
    for file, is_ours in ((rundir.status_file, _is_status), (rundir.events_file, _has_entry)):
        if file.exists() and not is_ours(file):
            raise _refused(rundir, f"its {file.name} was not written by a Monitor")


def claim_for_file(path: Path, mark: bytes = b"") -> None:
    """Raise ForeignFolderError if the output `path` would replace what stabkit did not write there.

    That is a file of a run, or one without the `mark` among its first bytes. An empty file may be
    replaced.
    """
    path = path.resolve()
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if mark not in file.read(MARKED_WITHIN):
                raise ForeignFolderError(
                    f"{path}: is there already, and stabkit did not write it; name another file"
                )
    for folder in (path.parent, path.parent.parent):
        rundir = RunDir(folder)
        inside = path.relative_to(folder).parts
        if _holder(rundir) not in ("nobody", "others") and _is_kept(inside):
            raise ForeignFolderError(f"{path}: is a file of the run {folder}; name another file")


def _is_kept(inside: tuple[str, ...]) -> bool:
    """Return whether a path relative to a run's folder is one of the run's own files."""
    if len(inside) == 1:
        return inside[0] in _KEPT
    return inside == ("checkpoints", "last.pt") or inside[0] in (*TABLES, "states")


def claim_for_sweep(folder: Path) -> None:
    """Raise ForeignFolderError if the folder for a sweep's runs is itself a run."""
    rundir = RunDir(folder)
    holder = _holder(rundir)
    if holder not in ("nobody", "others"):
        raise _refused(rundir, "is itself a run, where the folder of a sweep was expected")


def _holder(rundir: RunDir) -> Holder:
    names = {name for name in _names(rundir.path) if not _BEFORE.fullmatch(name)}
    if not names:
        return "nobody"
    meta = _meta(rundir)
    if "converted" in meta:
        return "converted"
    if "imported" in meta:
        return "imported"
    if rundir.config_file.name in names:
        return "monitor" if is_of_monitor(rundir.config_file) else "run"
    if of_train(meta):
        return "nameless"
    recorded = (rundir.status_file.name in names and _is_status(rundir.status_file)) or (
        rundir.events_file.name in names and _has_entry(rundir.events_file)
    )
    return "monitor" if recorded or _parts(rundir) else "others"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        if folder.is_symlink():
            raise ForeignFolderError(f"{folder}: a link to nothing; {_ELSEWHERE}") from None
        return []
    except NotADirectoryError:
        problem = "a file, where a folder was expected"
        raise ForeignFolderError(f"{folder}: {problem}; {_ELSEWHERE}") from None
    except OSError as error:
        problem = f"its content cannot be listed ({error.strerror})"
        raise ForeignFolderError(f"{folder}: {problem}; {_ELSEWHERE}") from None


def _meta(rundir: RunDir) -> dict[str, Any]:
    try:
        return rundir.read_meta()
    except (OSError, ValueError, RecursionError) as error:
        problem = f"not readable ({error}), so the owner of its folder is unknown"
        raise ForeignFolderError(f"{rundir.meta_file}: {problem}") from None


def _parts(rundir: RunDir) -> bool:
    return any(any(rundir.table(name).glob("part-*.parquet")) for name in TABLES)


def _is_settings(file: Path) -> bool:
    """Return whether a `config.yaml` is stabkit's; a user's own training may keep one as well."""
    try:
        content = parse_yaml(read_file(file).decode())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= _SECTIONS


def is_of_monitor(file: Path) -> bool:
    """Return whether a `config.yaml` holds the settings that another program gave to a Monitor."""
    try:
        return read_file(file).startswith(MONITOR_SETTINGS.encode())
    except OSError:
        return False


def _is_status(file: Path) -> bool:
    """Return whether a `status.json` is stabkit's. One that a crash tore counts as such."""
    try:
        content = json.loads(read_file(file))
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(content, dict) and "state" in content and "heartbeat" in content


def _has_entry(file: Path) -> bool:
    """Return whether a line is an entry of a log of stabkit, or no line is whole."""
    try:
        content = read_file(file)
    except OSError:
        return False
    lines = content.splitlines()
    begin = b'{"time": '  # of every entry; a kill may tear the last line
    if lines and not content.endswith(b"\n") and begin.startswith(lines[-1][: len(begin)]):
        lines.pop()
    found = [_parsed(line) for line in lines if line.strip()]
    return not found or any(isinstance(e, dict) and {"time", "kind"} <= e.keys() for e in found)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _refused(rundir: RunDir, problem: str) -> ForeignFolderError:
    return ForeignFolderError(f"{rundir.path}: {problem}; {_ELSEWHERE}")


def _listed(rundir: RunDir) -> str:
    return f"holds {first_of(map(repr, sorted(_names(rundir.path))), 3)}, and no run"


_WORDS: dict[Holder, Callable[[RunDir], str]] = {
    "nameless": lambda rundir: f"holds a run without its {rundir.config_file.name}",
    "imported": lambda _: "holds imported weights, which can be evaluated but not trained on",
    "converted": lambda _: "holds a converted log",
    "monitor": lambda _: "holds what a Monitor recorded",
    "others": _listed,
}
