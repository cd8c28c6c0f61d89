"""Writing over the bytes of a small file, which is possible even when the disk is full."""

import errno
import os
from pathlib import Path

from stabkit.rundir.own_files import LARGEST, LinkedError, refuse_link


def overwrite(path: Path, content: bytes) -> None:
    """Replace the bytes of `path` in place, by a single write.

    This is for a last status on a full disk: a temporary file would find no room. It is not atomic,
    so use `atomic_write` wherever there is room. Raises OSError; the file is then unchanged.
    """
    refuse_link(path)
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_nlink != 1:
            raise LinkedError(f"{path}: has a second name, perhaps in another folder")
        before = os.pread(file, LARGEST, 0)
        content = content.ljust(len(before))  # spaces, where the old content was longer
        written = os.pwrite(file, content, 0)
        if written < len(content):
            os.pwrite(file, before[:written], 0)
            os.ftruncate(file, len(before))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file)
    finally:
        os.close(file)
