"""A full disk, as the operating system reports it."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from stabkit.rundir import atomic, log


def no_room(patch: pytest.MonkeyPatch) -> None:
    """Refuse every new file and every further line; existing bytes can still be replaced."""

    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(atomic, "_new_beside", full)
    patch.setattr(log, "append_to", full)


def small_disk(patch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
    """Let the disk of `folder` have `size` bytes: once they are used up, new files are refused."""
    new = atomic._new_beside

    def free() -> int:
        stats = (path.stat() for path in folder.rglob("*") if path.is_file())
        return size - sum({stat.st_ino: stat.st_size for stat in stats}.values())

    def refused_if_full(*given: Any) -> Any:
        if free() <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return new(*given)

    patch.setattr(atomic, "_new_beside", refused_if_full)
    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=max(0, free())))
