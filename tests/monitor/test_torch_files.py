"""Files of tensors, where the disk does not take them."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from stabkit.monitor.torch_files import write_tensors


class TakesSmallOnes(io.FileIO):
    """A file on a disk with a little space left."""

    def write(self, data: Any, /) -> int:
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_what_the_disk_says_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what torch makes of it: `RuntimeError: unexpected pos 576 vs 470`."""
    file = tmp_path / "tensors.pt"
    write_tensors({"before": torch.zeros(1)}, file)
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda path, _: TakesSmallOnes(path, "w"))
        with pytest.raises(OSError, match="No space left on device"):
            write_tensors({"after": torch.zeros(10**5)}, file)
    assert list(torch.load(file)) == ["before"]
