"""Text that is compressed or in UTF-16: read from a copy."""

import codecs
import gzip
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stabkit.convert.series import ConvertError

_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as `>` of PowerShell writes it
_ARCHIVES = {b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


def is_packed(start: bytes) -> bool:
    """Return whether a file that begins like this is gzip or UTF-16."""
    return start.startswith((_GZIP, *_UTF16))


@contextmanager
def unpacked(path: Path, start: bytes) -> Iterator[Path]:
    """Yield a copy in UTF-8 or not compressed; errors about the copy name `path` instead."""
    with TemporaryDirectory(prefix="stabkit-") as folder:
        is_gzip = start.startswith(_GZIP)
        copy = Path(folder, path.name.removesuffix(".gz") if is_gzip else path.name)
        try:
            if is_gzip:
                with gzip.open(path) as source, copy.open("wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                copy.write_text(path.read_text(encoding="utf-16"), encoding="utf-8")
        except (EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            what = "gzip" if is_gzip else "UTF-16"
            raise ConvertError(f"{path}: damaged {what}: {error}") from None
        try:
            yield copy
        except ConvertError as error:
            message = str(error).replace(str(copy), str(path))
            raise ConvertError(message, *error.options) from None


def refuse_archive(path: Path, start: bytes) -> None:
    """Raise ConvertError for a compressed file that is not read, and say so."""
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            raise ConvertError(f"{path}: compressed by {name}: unpack it and name the log in it")
