"""The run folders below a folder."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

TABLES = ("layers", "scalars", "evals")  # one of them, or a config.yaml, makes a folder a run


class LeftOutWarning(UserWarning):
    """Something damaged, foreign or there twice was left out; the message names it and says why."""


def left_out(what: Path, why: str, part: str = "") -> None:
    """Warn that `what`, or a part of it, is left out."""
    warnings.warn(f"{what}: {part}{' ' * bool(part)}left out, {why}", LeftOutWarning, stacklevel=3)


def find_runs(folder: Path) -> list[Path]:
    """Every run folder at or below `folder`, in name order. Raises FileNotFoundError.

    A folder that links lead to a second time, or that may not be read, is named in a
    LeftOutWarning.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: a file, where a folder of runs was expected")
    return sorted(_walk(folder, {}))


def _walk(folder: Path, seen: dict[tuple[int, int], Path]) -> Iterator[Path]:
    """`seen`: the folders walked so far by their device and inode."""
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
        stat = folder.stat()
    except OSError as error:
        left_out(folder, f"not readable ({error.strerror})")
        return
    first = seen.setdefault((stat.st_dev, stat.st_ino), folder)
    if first is not folder:
        left_out(folder, f"it is the folder {first}")
        return
    if "config.yaml" in entries or any(_is_table(entries[n]) for n in TABLES if n in entries):
        yield folder
        return
    # links last, so that of a folder and a link to it beside it the folder is taken
    for name in sorted(entries, key=lambda name: (entries[name].is_symlink(), name)):
        if not name.startswith(".") and _is_dir(entries[name]):
            yield from _walk(folder / name, seen)


def _is_table(entry: "os.DirEntry[str]") -> bool:
    """Not so a run, or a folder of runs, that is called as a table is."""
    try:
        with os.scandir(entry.path) as parts:
            inside = [(part.name, part.is_dir()) for part in parts]
    except OSError:  # a file, or not readable: whoever reads the run says so
        return True
    return not any(is_dir or name == "config.yaml" for name, is_dir in inside)


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
