"""TensorBoard event files -> series.

The files are read record by record. TensorBoard's own accumulator keeps 10,000 values of a tag by
default, drops values that it takes for orphaned after a restart, and ignores damage silently.
"""

import json
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.convert.resumes import given_up_words
from stabkit.convert.series import ConvertError, Log, Series, shown
from stabkit.printing import counted

LAYOUT = "stabkit/layout"  # tag of the text in an export that says where its tags belong
FRAME = 16  # bytes around a record: length, its checksum, the record's checksum
LARGE = 1 << 16  # bytes; no scalar is as large, and checksums of images would take minutes


class _DamageError(ValueError):
    pass


def need_tensorboard() -> None:
    """Raise a ConvertError that names the extra if tensorboard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ConvertError(
            "event files need the package tensorboard: pip install 'stabkit[tensorboard]'"
        ) from None


def is_event_file(path: Path) -> bool:
    return "tfevents" in path.name and path.is_file()


def event_files(source: Path) -> list[Path]:
    """Return the files in the order written: their names have a time in seconds, then a counter."""
    if not source.is_dir():
        return [source]
    found = [path for path in source.iterdir() if is_event_file(path)]
    return sorted(found, key=lambda path: re.sub(r"\d+", lambda m: m[0].zfill(20), path.name))


def read_events(source: Path) -> Log:
    """Read one run: an event file, or all of a folder, with the series of `add_scalars` below it.

    These get the name of their tag and what their folder adds to it: `loss/train` in `loss_train`.
    """
    log = _read_own(source)
    for folder in subfolders(source):
        try:
            below = _read_own(folder)
        except ConvertError:
            continue  # a run of its own, whose reading says that it is damaged
        if name := _name_of_scalars(folder, list(below.series)):
            log.series[name] = next(iter(below.series.values()))
            log.notes += [f"{folder.name}: {note}" for note in below.notes]
    return log


def subfolders(source: Path) -> list[Path]:
    """Return the folders with event files directly in a folder, by name."""
    if not source.is_dir():
        return []
    return sorted(path for path in source.iterdir() if path.is_dir() and event_files(path))


def is_of_scalars(folder: Path) -> bool:
    """Return whether torch's `add_scalars` made a folder: it belongs to the run above."""
    try:
        return _name_of_scalars(folder, list(_read_own(folder).series)) is not None
    except ConvertError:
        return False


def _name_of_scalars(folder: Path, tags: Sequence[str]) -> str | None:
    """Return the name of the one series of a folder that `add_scalars` made; else None.

    The folder is called as the tag, with `_` for `/`, and the key of the series in its dictionary.
    """
    begin = tags[0].replace("/", "_") + "_" if len(tags) == 1 else ""
    key = folder.name.removeprefix(begin)
    return f"{tags[0]}/{key}" if begin and key and key != folder.name else None


def _read_own(source: Path) -> Log:
    """Read an event file, or those of a folder.

    A file may begin with a mark that the run was resumed at a step (`purge_step` of a
    SummaryWriter): earlier values from there on, of every tag, belong to an attempt that was given
    up. Without a mark this is the lowest step at which a later file takes up tags of earlier files
    again. A tag that has values at step 0 alone there does not count: Lightning writes `hp_metric`
    at every start, and a test its results. Within a file the later of two values at a step wins.
    """
    need_tensorboard()
    log = Log(source.name)
    given_up = lost = 0
    for path in event_files(source):
        new, marked = _read_file(path, log)
        again = [
            one.steps.min() for tag, one in new.items() if tag in log.series and one.steps.max() > 0
        ]
        resumed = marked if marked is not None else min(again, default=None)
        if resumed is not None:
            for tag, old in log.series.items():
                kept = old.steps < resumed
                given_up += int(np.sum(~kept))
                lost += int(np.sum(~kept & ~np.isfinite(old.values)))
                log.series[tag] = Series(old.steps[kept], old.values[kept])
        for tag, one in new.items():
            log.series[tag] = _joined(log.series[tag], one) if tag in log.series else one
    log.series = {tag: one for tag, one in log.series.items() if one.steps.size}
    if given_up:
        why = "that a later event file takes up again from an earlier step"
        log.notes.append(given_up_words(given_up, lost, why))
    for tag in log.series:
        log.left_out.pop(tag, None)
    return log


def _joined(one: Series, other: Series) -> Series:
    return Series(
        np.concatenate([one.steps, other.steps]), np.concatenate([one.values, other.values])
    )


def _read_file(path: Path, log: Log) -> tuple[dict[str, Series], int | None]:
    """Return the series of a file, and the step at which it says that the run was resumed."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto import event_pb2

    steps: dict[str, array[int]] = {}
    values: dict[str, array[float]] = {}
    count = 0
    resumed = None
    try:
        for record in _records(path):
            event = event_pb2.Event.FromString(record)
            count += 1
            if event.session_log.status == event_pb2.SessionLog.START:
                resumed = event.step
            for value in event.summary.value:
                number = _number(value)
                if isinstance(number, str):
                    _set_aside(log, value, number)
                    continue
                steps.setdefault(value.tag, array("q")).append(event.step)
                values.setdefault(value.tag, array("d")).append(number)
    except (_DamageError, DecodeError) as error:
        if not count:
            raise ConvertError(f"{path}: not a TensorBoard event file ({error})") from None
        log.notes.append(f"{path.name}: {error}; kept the {counted(count, 'record')} before it")
    if not count:
        log.notes.append(f"{path.name}: empty")
    series = {
        tag: Series(np.array(steps[tag], np.int64), np.array(values[tag], np.float64))
        for tag in steps
    }
    return series, resumed


def _records(path: Path) -> Iterator[bytes]:
    """Yield every whole record. Raises _DamageError, with the place, at the first damaged one."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    def is_whole(data: bytes, checksum: bytes) -> bool:
        return struct.pack("<I", masked_crc32c(data)) == checksum

    size = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while head := file.read(12):
            if len(head) == 12 and not is_whole(head[:8], head[8:]):
                raise _DamageError(f"damaged at byte {at:,}")
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if length > size - at - FRAME:  # checked before reading: a damaged length may be huge
                raise _DamageError(f"ends within a record, at byte {at:,}")
            data, checksum = file.read(length), file.read(4)
            if length < LARGE and not is_whole(data, checksum):
                raise _DamageError(f"damaged at byte {at:,}")
            yield data
            at += length + FRAME


def _number(value: Any) -> float | str:
    """Return the value as a number, as TensorFlow 1, 2 or torch write it; else what kind it is."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    plugin = value.metadata.plugin_data.plugin_name
    if kind is None:
        return str(plugin).rstrip("s") or "no value"
    if kind != "tensor":
        return {"histo": "histogram"}.get(kind, str(kind))
    shape = [dim.size for dim in value.tensor.tensor_shape.dim]
    # Checked before unpacking: numpy would fill whatever shape a damaged file claims.
    if plugin not in ("", "scalars") or any(size != 1 for size in shape):
        return str(plugin).rstrip("s") or f"tensor of shape {shape}"
    from tensorboard.util.tensor_util import make_ndarray

    try:
        return float(make_ndarray(value.tensor).reshape(-1)[0])
    except (ValueError, TypeError, IndexError, KeyError):
        return "tensor that is no number"


def _set_aside(log: Log, value: Any, kind: str) -> None:
    if value.tag == LAYOUT and kind == "text":
        try:
            log.layout = json.loads(value.tensor.string_val[0])
        except (ValueError, IndexError, RecursionError):
            log.notes.append(f"{shown(LAYOUT)}: not readable, so names decide")
        return
    log.left_out[value.tag] = kind
