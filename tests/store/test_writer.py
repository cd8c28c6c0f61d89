"""A writer whose disk refuses something."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from stabkit.store.reader import StoredRun
from stabkit.store.writer import Writer


def test_rows_in_their_place_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is renamed, then the sync of its folder fails: a second try must not repeat it."""
    sync = os.fsync

    def refuses_folders(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    writer = Writer(tmp_path, "run")
    writer.add_scalars(np.arange(3), "loss", np.ones(3))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuses_folders)
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    writer.add_scalars(np.arange(3, 5), "loss", np.ones(2))
    writer.flush()
    assert StoredRun(tmp_path).scalar("loss").index.tolist() == [0, 1, 2, 3, 4]
