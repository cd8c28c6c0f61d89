"""Files written as a whole, and folders that stay the same."""

import os
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path


def atomic_write(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace `path` as a whole: a reader, or a kill at any time, finds the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    commit(temporary, path, durable)


def commit(temporary: Path, path: Path, durable: bool = True) -> None:
    """Rename a written and synced file into place, and make the rename itself durable."""
    os.replace(temporary, path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def same_folder(path: Path) -> Callable[[], bool]:
    """Asks whether `path` is still the folder that it is now.

    Not so once it was deleted or moved, even if another has been made in its place.
    """
    held = os.open(path, os.O_RDONLY)  # while it is open no other folder gets its number

    def ask() -> bool:
        try:
            return os.path.samestat(path.stat(), os.fstat(held))
        except FileNotFoundError:
            return False

    weakref.finalize(ask, os.close, held)
    return ask


def utc_now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
