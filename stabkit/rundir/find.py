"""The run folders below a folder."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from stabkit.printing import one_line

TABLES = ("layers", "scalars", "evals")  # one of them, or a config.yaml, makes a folder a run


class LeftOutWarning(UserWarning):
    """Something damaged, foreign or there twice was left out; the message names it and says why."""


def left_out(what: Path, why: str, part: str = "") -> None:
    """Warn that `what`, or a part of it, is left out."""
    message = one_line(f"{what}: {part}{' ' * bool(part)}left out, {why}")
    warnings.warn(message, LeftOutWarning, stacklevel=3)


def find_runs(folder: Path) -> list[Path]:
    """Every run folder at or below `folder`, in name order. Raises FileNotFoundError.

    A link is followed to a run, and to nothing else: one to a folder of runs, or to the whole disk,
    is named in a LeftOutWarning. So is a folder that links lead to a second time or that may not be
    read, and whatever is neither file nor folder.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: a file, where a folder of runs was expected")
    return sorted(_walk(folder))


def _walk(top: Path) -> Iterator[Path]:
    seen: dict[tuple[int, int], Path] = {}  # the folders walked so far by device and inode
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
        elif "config.yaml" in entries or any(_is_table(entries[n]) for n in TABLES if n in entries):
            yield folder
        elif is_link:
            del seen[stat.st_dev, stat.st_ino]  # the folder itself may be met yet
            left_out(folder, "a link to a folder that is no run")
        else:
            waiting += reversed(list(_below(folder, list(entries.values()))))


def _below(folder: Path, entries: list["os.DirEntry[str]"]) -> Iterator[tuple[Path, bool]]:
    """The folders to walk, and whether a link leads there.

    Links come last, so that of a folder and a link to it beside it the folder is taken.
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
        except OSError as error:  # as of a link to itself
            left_out(path, f"not readable ({error.strerror})")


def _is_table(entry: "os.DirEntry[str]") -> bool:
    """Not so a run, or a folder of runs, that is called as a table is."""
    try:
        with os.scandir(entry.path) as parts:
            inside = [(part.name, part.is_dir()) for part in parts]
    except OSError:  # a file, or not readable: whoever reads the run says so
        return True
    return not any(is_dir or name == "config.yaml" for name, is_dir in inside)
