"""Files and folders that belong to a run: never opened through a link, never read from a pipe."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 28  # bytes; no run writes a larger status, configuration or log


class LinkedError(OSError):
    """A link or a pipe stands where a run writes a file or folder of its own."""


class NoFileError(OSError):
    """The path of a run's file leads to something that no run writes, such as a pipe."""


def append_to(path: Path) -> BinaryIO:
    """Open a run's own file to append to it, unbuffered. Raises LinkedError for a link or pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    refuse_link(path)
    file = os.open(path, flags, 0o666)
    return open(file, "ab", buffering=0)


def own_folder(path: Path) -> None:
    """Do what `make_inside` does. Raises LinkedError for a link."""
    refuse_link(path)
    make_inside(path)


def make_inside(path: Path) -> None:
    """Create a folder in that of a run if there is none.

    Raises FileNotFoundError if the run's folder is gone: it may be deleted at any time, and a run
    never creates it anew.
    """
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent}: the run's folder was deleted or moved") from None


def refuse_link(path: Path) -> None:
    """Raise LinkedError if `path` exists and is neither a plain file nor a folder."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        what = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
        raise LinkedError(
            f"{path}: is {what}, but a run writes to its own files and folders there; move it "
            "away, or make the whole run folder the link"
        )


def read_file(path: Path) -> bytes:
    """Read a run's file. Raises OSError, also for a pipe, which would block for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise NoFileError(errno.EINVAL, "a pipe, a socket or a device, not a file", str(path))
    if found.st_size > LARGEST:
        raise NoFileError(errno.EFBIG, f"{found.st_size:,} bytes, more than {LARGEST:,}", str(path))
    return path.read_bytes()
