"""Files written as a whole, folders that stay the same, and nothing through a link or from a pipe.

Others may write to the folder that a run is in. A temporary file has a name that nobody can foresee
and is made by this process or not at all; a file that grows is never opened through a link.
"""

import errno
import fcntl
import os
import re
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 28  # bytes of a run's status, settings or event log: more is none of ours

_TEMPORARY = re.compile(r"\.(.+)\.stabkit-[0-9a-f]{16}\.tmp", re.DOTALL)


class LinkedError(OSError):
    """A link or a pipe where a run writes a file or a folder of its own: it may lead anywhere."""


class NoFileError(OSError):
    """What has the name of a run's file is none that a run has written."""


@contextmanager
def whole(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once the block is through, and is gone if it fails.

    A reader, or a kill at any time, finds the old file or the new. A link at `path` is replaced,
    what it leads to is left alone.
    """
    remove_dead(path.parent, path.name)
    temporary, file = _new_beside(path)
    with file:
        try:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def atomic_write(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace `path` as a whole; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path, durable) as file:
        file.write(content)


def overwrite(path: Path, content: bytes) -> None:
    """Write in the place of a small file's bytes, which a full disk still lets one do.

    Only for a last word that would not be said otherwise: one write is all but a whole one. Raises
    OSError; the file is then as it was.
    """
    refuse_link(path)
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_nlink != 1:
            raise LinkedError(f"{path}: has a second name, perhaps in another folder")
        before = os.pread(file, LARGEST, 0)
        content = content.ljust(len(before))  # no rest of the old words is left behind the new
        written = os.pwrite(file, content, 0)
        if written < len(content):
            os.pwrite(file, before[:written], 0)
            os.ftruncate(file, len(before))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file)
    finally:
        os.close(file)


def _new_beside(path: Path) -> tuple[Path, BinaryIO]:
    """A new file, locked while it is written: so others see whether its writer is alive."""
    while True:
        name = f".{_stem(path.name)}.stabkit-{os.urandom(8).hex()}.tmp"
        try:
            file = path.with_name(name).open("xb")  # x: made here, never through a link
        except OSError as error:  # names the file that was asked for
            raise OSError(error.errno, error.strerror, str(path)) from None
        with suppress(OSError):  # no locks there: then nobody else can take one either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path.with_name(name), file
        file.close()  # taken for a dead one between its making and its lock


def _stem(name: str) -> str:
    return name[:50]  # with the rest it stays within the 255 bytes that a name may have


def remove_dead(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files, those for `name` alone if given, whose process was killed."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        found = _TEMPORARY.fullmatch(entry.name)
        if (
            found
            and (name is None or found[1] == _stem(name))
            and entry.is_file(follow_symlinks=False)
        ):
            with suppress(OSError):  # BlockingIOError: it is being written
                _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(file)


def append_to(path: Path) -> BinaryIO:
    """Open a run's own file to add to it, unbuffered. Raises LinkedError for a link or a pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    refuse_link(path)
    file = os.open(path, flags, 0o666)
    return open(file, "ab", buffering=0)


def own_folder(path: Path) -> None:
    """Make a run's own folder where there is none. Raises LinkedError for a link."""
    refuse_link(path)
    path.mkdir(parents=True, exist_ok=True)


def refuse_link(path: Path) -> None:
    """Raises LinkedError when `path` is there and is neither a plain file nor a folder."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        what = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
        raise LinkedError(
            f"{path}: is {what}; a run writes to files and folders of its own there. Move it away, "
            "or let the run's whole folder be the link"
        )


def read_file(path: Path) -> bytes:
    """Raises OSError, also for what is no file: of a pipe one would wait for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise NoFileError(errno.EINVAL, "a pipe, a socket or a device, not a file", str(path))
    if found.st_size > LARGEST:
        raise NoFileError(errno.EFBIG, f"{found.st_size:,} bytes, more than {LARGEST:,}", str(path))
    return path.read_bytes()


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
