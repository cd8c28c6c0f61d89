"""Logs that are compressed or in UTF-16: read from a copy, and not without a limit."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pyarrow.parquet as pq

from stabkit.convert.series import ConvertError

LIMIT = 2 << 30  # bytes that a log may have unpacked: a few kilobytes can claim to hold any number
_CELL = 8  # bytes of a number
_GZIP = b"\x1f\x8b"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as `>` of PowerShell writes it
_ARCHIVES = {b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


def is_packed(start: bytes) -> bool:
    """Return whether a file that begins like this is gzip or UTF-16."""
    return start.startswith((_GZIP, *_UTF16))


@contextmanager
def unpacked(path: Path, start: bytes) -> Iterator[Path]:
    """Yield a copy in UTF-8 or not compressed; errors about the copy name `path` instead.

    Raises ConvertError for what is damaged, and for more than `LIMIT` bytes in gzip.
    """
    with TemporaryDirectory(prefix="stabkit-") as folder:
        is_gzip = start.startswith(_GZIP)
        copy = Path(folder, path.name.removesuffix(".gz") if is_gzip else path.name)
        try:
            if is_gzip:
                with gzip.open(path) as source, copy.open("wb") as target:
                    _copy(path, source, target)
            else:
                copy.write_text(path.read_text(encoding="utf-16"), encoding="utf-8")
        except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
            what = "gzip" if is_gzip else "UTF-16"
            raise ConvertError(f"{path}: damaged {what}: {error}") from None
        try:
            yield copy
        except ConvertError as error:
            message = str(error).replace(str(copy), str(path))
            raise ConvertError(message, *error.options) from None


def _copy(path: Path, source: gzip.GzipFile, target: BinaryIO) -> None:
    size = 0
    while block := source.read(1 << 20):
        if not size and block.startswith(_GZIP):
            raise ConvertError(f"{path}: gzip within gzip: unpack it and name the log in it")
        size += len(block)
        if size > LIMIT:
            raise ConvertError(
                f"{path}: more than {_words(LIMIT)} when unpacked, the most that is read of gzip; "
                "unpack it (gunzip) and name the log in it, or the part of it that is wanted"
            )
        target.write(block)


def refuse_large(path: Path, file: pq.ParquetFile, columns: int) -> None:
    """Raise ConvertError for a Parquet file of which `columns` would take more than `LIMIT`."""
    facts = file.metadata
    packed = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
    size = max(packed, facts.num_rows * columns * _CELL)
    if size > LIMIT:
        raise ConvertError(
            f"{path}: {facts.num_rows} rows of {columns} columns, {_words(size)} when unpacked; at "
            f"most {_words(LIMIT)} are read: write the columns and rows that are wanted to a file"
        )


def _words(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"


def refuse_archive(path: Path, start: bytes) -> None:
    """Raise ConvertError for a compressed file that is not read, and say so."""
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            raise ConvertError(f"{path}: compressed by {name}: unpack it and name the log in it")
