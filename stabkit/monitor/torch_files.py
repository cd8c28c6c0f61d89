"""Files of tensors, written whole or not at all.

Reading one never runs code in it, and refuses a file that is not as it was written.
"""

import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stabkit.rundir import whole


def read_tensors(path: Path) -> dict[str, Any]:
    """Return a dictionary of tensors and plain data that `torch.save` wrote. Raises ValueError."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path}: not a file")
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    # Any Exception, because broken bytes make the unpickler raise many kinds. Torch's own message
    # is left out: it advises to load unsafely what has just been refused.
    except Exception:
        raise ValueError(
            f"{path}: not a file of tensors and plain data: it is damaged, or holds code, which is "
            "never loaded"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, not a dictionary of tensors")
    return content


def _check_archive(path: Path) -> None:
    """Raise ValueError naming the member of the archive that is not as it was written.

    torch writes checksums and does not check them. It also accepts a compressed member, which it
    never writes and which may have any size once it is unpacked.
    """
    try:
        if not zipfile.is_zipfile(path):
            return  # a file of torch before 1.6, without checksums; torch refuses anything else
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            swollen = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
            size = sum(m.file_size for m in members)
            whole = not swollen and size <= path.stat().st_size
            damaged = archive.testzip() if whole else None
    except Exception as error:  # any kind, as in read_tensors
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
    """Write atomically: whenever the process dies, `path` is whole, with old or new content.

    The folder must be there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file in it")
    with whole(path) as file:
        _save(content, file)


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """Call `torch.save`, and raise what the disk said instead of torch's `unexpected pos`."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
