"""Files of tensors: read without running code in them, and only as they were written; written
whole or not at all."""

import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stabkit.rundir import whole


def read_tensors(path: Path) -> dict[str, Any]:
    """A dictionary that `torch.save` wrote, of tensors and plain data. Raises ValueError."""
    if path.exists() and not path.is_file():  # of a pipe one would wait for ever
        raise ValueError(f"{path}: not a file")
    _check_archive(path)
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


def _check_archive(path: Path) -> None:
    """Raises ValueError that names the member of the archive that is not as it was written.

    torch keeps checksums and does not look at them. Nor does it refuse a member that is compressed,
    which it never writes and which may be of any size once it is not.
    """
    try:
        if not zipfile.is_zipfile(path):
            return  # as torch wrote before 1.6, without checksums; else torch refuses it
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            swollen = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
            size = sum(m.file_size for m in members)
            whole = not swollen and size <= path.stat().st_size
            damaged = archive.testzip() if whole else None
    except Exception as error:  # not a list of errors, as below
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())})") from None
    if swollen:
        raise ValueError(f"{path}: {swollen[0]} in it is compressed, which torch.save never does")
    if not whole:
        raise ValueError(f"{path}: damaged, its members are larger than the file")
    if damaged is not None:
        raise ValueError(
            f"{path}: damaged, {damaged} in it does not have the checksum it was given"
        )


def write_tensors(content: dict[str, Any], path: Path) -> None:
    """Atomic: whenever the process dies, `path` holds its old content or the new one, whole."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        _save(content, file)


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, which says `unexpected pos` when a disk is full; raises what the disk said."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
