"""Files of tensors: read without running code in them, written whole or not at all."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stabkit.rundir import commit


def read_tensors(path: Path) -> dict[str, Any]:
    """A dictionary that `torch.save` wrote, of tensors and plain data. Raises ValueError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    # not a list of errors: on broken bytes the unpickler lets many kinds through. And not torch's
    # message, which advises to load unsafely what has just been refused
    except Exception:
        raise ValueError(
            f"{path}: not a file of tensors and plain data: it is damaged, or holds code, which is "
            "never loaded"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, not a dictionary of tensors")
    return content


def write_tensors(content: dict[str, Any], path: Path) -> None:
    """Atomic: whenever the process dies, `path` holds its old content or the new one, whole."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        _save(content, file)
        file.flush()
        os.fsync(file.fileno())
    commit(temporary, path)


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, which says `unexpected pos` when a disk is full; raises what the disk said."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
