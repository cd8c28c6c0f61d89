"""How many values the peers' own files hold."""

import importlib
import struct
from collections.abc import Iterator
from pathlib import Path


def tensorboard_values(folder: Path) -> int:
    accumulator = importlib.import_module(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    count = 0
    for file in folder.rglob("events.out.tfevents.*"):
        read = accumulator(str(file), size_guidance={"scalars": 0})
        read.Reload()
        count += sum(len(read.Scalars(tag)) for tag in read.Tags()["scalars"])
    return count


def wandb_history(path: Path) -> Iterator[set[str]]:
    """The names in each history record of an offline run: protobufs in LevelDB's log format.

    A histogram is several items, told apart by the rest of their nested keys.
    """
    record_type = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    for content in _leveldb_records(path.read_bytes()[7:]):
        record = record_type.FromString(content)
        if record.HasField("history"):
            yield {item.key or item.nested_key[0] for item in record.history.item}


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """`data`: after the file's own header of 7 bytes, which counts as part of the first block."""
    block, header, whole, last = 32768, 7, 1, 4
    at, parts = 0, b""
    while at + header <= len(data):
        left = block - (at + 7) % block
        if left < header:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + header : at + header + length]
        at += header + length
        if kind in (whole, last):
            yield parts
            parts = b""
