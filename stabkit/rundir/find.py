"""The search for run folders below a folder."""

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from stabkit.printing import one_line

TABLES = ("layers", "scalars", "evals")  # a run folder holds one of these, or a config.yaml


class LeftOutWarning(UserWarning):
    """Something damaged, foreign or duplicate was left out; the message names it and says why."""


def left_out(what: Path, why: str, part: str = "") -> None:
    """Warn that `what`, or a part of it, is left out."""
    message = one_line(f"{what}: {part}{' ' * bool(part)}left out, {why}")
    warnings.warn(message, LeftOutWarning, stacklevel=3)


def find_runs(folder: Path) -> list[Path]:
    """List every run folder at or below `folder`, in name order. Raises FileNotFoundError.

    A link is followed only if it leads to a run: a link to a folder of runs, or to the whole disk,
    is named in a LeftOutWarning. So is a folder that is reached a second time or cannot be read,
    and anything that is neither a file nor a folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: a file, where a folder of runs was expected; `stabkit convert` makes a run "
            "of another tool's log"
        )
    return sorted(_walk(folder))


def _walk(top: Path) -> Iterator[Path]:
    seen: dict[tuple[int, int], Path] = {}  # folders visited so far, by device and inode
    waiting = [(top, False)]
    while waiting:
        folder, is_link = waiting.pop()
        try:
            stat = folder.stat()
            entries = {entry.name: entry for entry in os.scandir(folder)}
        except OSError as error:
            left_out(folder, f"not readable ({error.strerror})")
            continue
        first = seen.setdefault((stat.st_dev, stat.st_ino), folder)
        if first is not folder:
            left_out(folder, f"it is the folder {first}")
        elif _is_run(folder, entries):
            yield folder
        elif is_link:
            del seen[stat.st_dev, stat.st_ino]  # the folder itself may follow
            left_out(folder, "a link to a folder that is no run")
        else:
            waiting += reversed(list(_below(folder, list(entries.values()))))


def _is_run(folder: Path, entries: Mapping[str, "os.DirEntry[str]"]) -> bool:
    """Return whether a folder holds a run: a table, or a config.yaml.

    A project may have a config.yaml of its own above its runs. So one that nothing else of a run
    lies beside is that of a run only if no run lies below.
    """
    if any(_is_table(entries[name]) for name in TABLES if name in entries):
        return True
    if "config.yaml" not in entries:
        return False
    if any(name in entries for name in ("status.json", "meta.json", "job.json")):
        return True
    with warnings.catch_warnings():  # what is left out is said once, by the walk itself
        warnings.simplefilter("ignore", LeftOutWarning)
        below = (path for path, is_link in _below(folder, list(entries.values())) if not is_link)
        return not any(True for path in below for _ in _walk(path))


def _below(folder: Path, entries: list["os.DirEntry[str]"]) -> Iterator[tuple[Path, bool]]:
    """Yield the subfolders, each with whether it is a link.

    Links come last: if a folder and a link to it are side by side, the folder is visited first.
    """
    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
        path = folder / entry.name
        try:
            if entry.name.startswith(".") or entry.is_file():
                continue
            if entry.is_dir():
                yield path, entry.is_symlink()
            elif path.exists():
                left_out(path, "a pipe, a socket or a device")
            else:
                left_out(path, "a link to nothing")
        except OSError as error:  # for example a link to itself
            left_out(path, f"not readable ({error.strerror})")


def _is_table(entry: "os.DirEntry[str]") -> bool:
    """Return whether a folder with a table's name is one, not a run or folder of runs."""
    try:
        with os.scandir(entry.path) as parts:
            inside = [(part.name, part.is_dir()) for part in parts]
    except OSError:  # a file, or not readable: the reader of the run reports it
        return True
    return not any(is_dir or name == "config.yaml" for name, is_dir in inside)
