"""Event files written by TensorBoard's own writer."""

import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto


def write_events(
    folder: Path, rows: Iterable[tuple[int, str, object]], number: int = 0, tensors: bool = False
) -> Path:
    """Write an event file of (step, tag, value); `number` is its place among those of the folder.

    `tensors`: as TensorFlow 2 writes scalars.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{1700000000 + number}.host.{number}.v2"
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for step, tag, value in rows:
            event = Event(wall_time=time.time(), step=step)
            one = event.summary.value.add(tag=tag)
            if tensors or not isinstance(value, float):
                one.tensor.CopyFrom(make_tensor_proto(value))
            else:
                one.simple_value = value
            writer.write(event.SerializeToString())
    return path
