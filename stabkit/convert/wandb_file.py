"""`run-*.wandb`: the file that W&B writes during a run, read without W&B.

It holds records in LevelDB's log format (blocks of 32 KiB, fragments with a CRC), each a protobuf
message. Only what a history needs is decoded: field 2 of a record is the history. Its items have a
key (field 1) or the parts of a nested key (field 2), and a value as JSON (field 16). Field 2 of a
history is its step.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stabkit.convert.series import ConvertError

MAGIC = b":W&B"
_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_RECORD_HISTORY, _HISTORY_ITEM, _HISTORY_STEP = 2, 1, 2
_ITEM_KEY, _ITEM_NESTED_KEY, _ITEM_VALUE = 1, 2, 16


def wandb_records(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the history with `_step`; note a torn end, as a killed run leaves."""
    try:
        for content in _leveldb_records(path.read_bytes(), notes):
            for number, value in _fields(content):
                if number == _RECORD_HISTORY and isinstance(value, bytes):
                    yield _history(value)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ConvertError(f"{path}: no .wandb file that can be read ({error})") from None


def _leveldb_records(data: bytes, notes: list[str]) -> Iterator[bytes]:
    """Yield the records of a file, joined from their fragments."""
    at, parts = _HEADER, b""  # the file's own header counts as part of the first block
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0 and length == 0:  # a block that was never filled
            at += left
            continue
        fragment = data[at + _HEADER : at + _HEADER + length]
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(fragment) < length:
            notes.append(f"torn or damaged at byte {at:,}: what is before it was read")
            return
        parts = fragment if kind in (_FULL, _FIRST) else parts + fragment
        at += _HEADER + length
        if kind in (_FULL, _LAST):
            yield parts


def _history(content: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for number, value in _fields(content):
        if number == _HISTORY_ITEM and isinstance(value, bytes):
            name, cell = _item(value)
            row[name] = cell
        elif number == _HISTORY_STEP and isinstance(value, bytes):
            row.setdefault("_step", next((v for n, v in _fields(value) if n == 1), 0))
    return row


def _item(content: bytes) -> tuple[str, Any]:
    key, nested, text = "", [], "null"
    for number, value in _fields(content):
        if not isinstance(value, bytes):
            continue
        if number == _ITEM_KEY:
            key = value.decode()
        elif number == _ITEM_NESTED_KEY:
            nested.append(value.decode())
        elif number == _ITEM_VALUE:
            text = value.decode()
    try:
        cell = json.loads(text)
    except ValueError:
        cell = text
    return key or ".".join(nested), cell


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field: an integer, or the bytes of any other type.

    Source: the protocol buffers encoding guide, "message structure".
    """
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise struct.error(f"a field of wire type {kind}")
        if at + size > len(content):
            raise struct.error("a field that is longer than its message")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
