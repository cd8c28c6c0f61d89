"""Files that are replaced as a whole: a reader finds the old file or the new one, never a part.

Other users may write to the folder that a run is in. A temporary file therefore has a name that
nobody can predict, and it is created exclusively: never through a link that somebody planted.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.(.+)\.stabkit-[0-9a-f]{16}\.tmp", re.DOTALL)
_OPEN_OWN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def whole(path: Path | str, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` when the block ends, and is removed if it fails.

    A reader, or a kill at any time, finds the old file or the new one. A link at `path` is
    replaced; the file that it points to is not changed.
    """
    # Strings, not Paths: CPython 3.13.0 never frees a name that was once in a Path, and each
    # temporary file has a new name.
    folder, name = os.path.split(path)
    remove_dead(folder or os.curdir, name)
    temporary, file = _new_beside(folder, name)
    with file:
        try:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    if durable:  # the rename itself is on disk once the folder is synced
        opened = os.open(folder or os.curdir, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def atomic_write(path: Path | str, content: bytes, durable: bool = True) -> None:
    """Replace `path` as a whole; create its folder if there is none."""
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    with whole(path, durable) as file:
        file.write(content)


def remove_dead(folder: Path | str, name: str | None = None) -> None:
    """Remove the temporary files of killed processes: all in `folder`, or those for `name`."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        found = _TEMPORARY.fullmatch(entry.name)
        wanted = found and (name is None or found[1] == stem(name))
        if wanted and entry.is_file(follow_symlinks=False):
            with suppress(OSError):  # BlockingIOError: a live process is writing it
                _remove_unlocked(entry.path)


def _new_beside(folder: str, name: str) -> tuple[str, BinaryIO]:
    """Create a temporary file beside `name`; its lock shows others that its writer is alive."""
    while True:
        path = os.path.join(folder, f".{stem(name)}.stabkit-{os.urandom(8).hex()}.tmp")
        try:
            file = open(path, "xb")  # x: created here, never opened through a link  # noqa: SIM115
        except OSError as error:  # the message names the file that was asked for
            raise OSError(error.errno, error.strerror, os.path.join(folder, name)) from None
        with suppress(OSError):  # a file system without locks: nobody else can lock it either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # removed by `remove_dead` elsewhere before it was locked: try again


def stem(name: str) -> str:
    """Return what of a file's name its temporary name begins with."""
    return name[:50]  # a file name may have 255 bytes, the rest of the temporary name included


def _remove_unlocked(path: str) -> None:
    file = os.open(path, _OPEN_OWN)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(file)
