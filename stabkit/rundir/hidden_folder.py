"""A folder that is filled under a hidden name, so that a killed process leaves no half of it."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stabkit.rundir.atomic import stem


@contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`, to be filled and renamed to `path`.

    It is removed when the block ends without a rename. What killed processes left of others for
    the same `path` is removed first.
    """
    _remove_dead(path)
    hidden = path.parent / f".{stem(path.name)}.{os.urandom(8).hex()}.tmp"
    hidden.mkdir()
    lock = os.open(hidden, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nobody else can lock it either
            fcntl.flock(lock, fcntl.LOCK_EX)  # shows others that its writer is alive
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)


def _remove_dead(path: Path) -> None:
    """Remove the hidden folders for `path` that no live process holds a lock on."""
    pattern = re.compile(rf"\.{re.escape(stem(path.name))}\.[0-9a-f]{{16}}\.tmp")
    for entry in list(os.scandir(path.parent)):
        if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            with suppress(OSError):  # BlockingIOError: a live process is filling it
                _remove_unlocked(entry.path)


def _remove_unlocked(folder: str) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
