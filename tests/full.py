"""A disk without room, as the system would report it."""

import errno
import os
from typing import Any, NoReturn

import pytest

from stabkit.rundir import files, run_dir


def no_room(patch: pytest.MonkeyPatch) -> None:
    """No new file and no further line, as on a full disk; bytes that are there can be replaced."""

    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(files, "_new_beside", full)
    patch.setattr(run_dir, "append_to", full)
