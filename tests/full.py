"""A disk without room: a real one where it can be mounted, else what the system would say."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from stabkit.rundir import files, run_dir


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Of 8 MiB. Skips the test where none can be mounted."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room there is on its disk; delete it to have room again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def no_room(patch: pytest.MonkeyPatch) -> None:
    """No new file and no further line, as on a full disk; bytes that are there can be replaced."""

    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(files, "_new_beside", full)
    patch.setattr(run_dir, "append_to", full)
