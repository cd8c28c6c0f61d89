"""A full disk, as the operating system reports it."""

import errno
import os
from typing import Any, NoReturn

import pytest

from stabkit.rundir import atomic, event_log


def no_room(patch: pytest.MonkeyPatch) -> None:
    """Refuse every new file and every further line; existing bytes can still be replaced."""

    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(atomic, "_new_beside", full)
    patch.setattr(event_log, "append_to", full)
