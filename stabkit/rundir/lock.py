"""The lock of a run: one process writes a run, and it notices when its folder is exchanged."""

import fcntl
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stabkit.rundir.own_files import append_to

TRIES = 21
PAUSE_S = 0.02


class RunBusyError(RuntimeError):
    """Another live process is writing this run."""


class HeldFolder:
    """A run's folder whose lock this process holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_same = same_folder(path)

    def check(self) -> None:
        """Raise FileNotFoundError if the folder was deleted, moved or replaced by another."""
        if not self._is_same():
            raise FileNotFoundError(f"{self.path}: the run's folder was deleted or moved")


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on `file`. Raises RunBusyError when another process holds it.

    The kernel releases the lock when this process dies.
    """
    with append_to(file) as lock:
        # `is_locked` in another process takes the lock for an instant, so one try is not enough.
        for last in [False] * (TRIES - 1) + [True]:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    message = f"{file.parent}: another process is writing here"
                    raise RunBusyError(message) from None
                time.sleep(PAUSE_S)
        process = os.getpid()
        try:
            yield
        finally:
            # A process forked meanwhile, such as a loader's worker, shares the lock. Release it
            # for all of them, and only in the process that took it.
            if os.getpid() == process:
                fcntl.flock(lock, fcntl.LOCK_UN)


def is_locked(file: Path) -> bool:
    """Return whether a live process on this machine holds the lock."""
    try:
        lock = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # no such file, or none that a run has created
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def same_folder(path: Path) -> Callable[[], bool]:
    """Return a function that tells whether `path` is still the folder that it is now.

    It is not once the folder was deleted or moved, even if another was created in its place.
    """
    held = os.open(path, os.O_RDONLY)  # while it is open no other folder gets its inode number

    def ask() -> bool:
        try:
            return os.path.samestat(path.stat(), os.fstat(held))
        except FileNotFoundError:
            return False

    weakref.finalize(ask, os.close, held)
    return ask
