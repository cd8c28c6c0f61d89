"""The part files of a table: written whole with a seal, and refused if a byte has changed.

The seal is the CRC-32 of all other bytes of the file. Parquet's own checksums cover the data, but
not the metadata that says how to read it: in a part of a few rows, most of the file. The seal is a
field of the footer that other readers skip, in the place that the format keeps for extensions
(field 32767, the last before the byte that ends the footer).
"""

import io
import os
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stabkit.rundir import atomic_write, own_folder, part_name, part_numbers

# Thrift's compact protocol: type binary, number 32767 (zigzag, varint), 12 bytes: mark and CRC.
_FIELD = b"\x08\xfe\xff\x03\x0c"
_MARK = b"stabkit:"
_END = 9  # bytes after the seal: end of the footer (1), length of the footer (4), PAR1 (4)


def next_part(folder: Path) -> str:
    """Return the path of the next part. Parts are counted, because two flushes may share a step.

    The path is a string: CPython 3.13.0 never frees a name that was once in a Path.
    """
    own_folder(folder)
    return os.path.join(folder, part_name(max(part_numbers(folder), default=-1) + 1))


def write_part(path: Path | str, table: pa.Table, schema: pa.Schema) -> None:
    """Write a part file, whole or not at all."""
    content = io.BytesIO()
    pq.write_table(table.cast(schema), content, compression="zstd", write_page_checksum=True)
    atomic_write(path, sealed(content.getvalue()))


def open_part(path: Path) -> pq.ParquetFile:
    """Open a part. Raises OSError, ValueError or pa.ArrowException if it is damaged or not a part.

    A part without a seal, from an older version or another program, is read as it is.
    """
    if not path.is_file():  # opening a pipe would wait forever
        raise OSError("not a file")
    content = path.read_bytes()
    if _is_broken(content):
        raise ValueError("its bytes are not those that were written: their checksum differs")
    return pq.ParquetFile(
        pa.BufferReader(content), pre_buffer=False, page_checksum_verification=True
    )


def sealed(content: bytes) -> bytes:
    """Return the same Parquet file with the seal in its footer."""
    (length,) = struct.unpack("<I", content[-8:-4])
    length += len(_FIELD) + len(_MARK) + 4
    head, end = content[:-_END] + _FIELD + _MARK, b"\0" + struct.pack("<I", length) + b"PAR1"
    return head + struct.pack("<I", zlib.crc32(end, zlib.crc32(head))) + end


def _is_broken(content: bytes) -> bool:
    seal, end = content[-_END - 4 : -_END], content[-_END:]
    head = memoryview(content)[: -_END - 4]
    begun = head[-len(_FIELD + _MARK) :]
    # One of the two is enough to expect a seal: the other may be what was damaged.
    if begun[: len(_FIELD)] != _FIELD and begun[len(_FIELD) :] != _MARK:
        return False
    return seal != struct.pack("<I", zlib.crc32(end, zlib.crc32(head)))
