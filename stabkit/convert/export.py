"""`stabkit export RUN --tensorboard FOLDER`: the tables of a run as TensorBoard events."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from stabkit.convert.layout import FACTS
from stabkit.convert.series import ConvertError
from stabkit.convert.tensorboard import LAYOUT, is_event_file, need_tensorboard
from stabkit.rundir import whole
from stabkit.store.reader import StoredRun
from stabkit.store.schema import KEYS
from stabkit.store.tables import stored_table


def export_events(run: StoredRun, folder: Path) -> int:
    """Write every scalar, evaluation and signal, and the log as text; return the number of tags.

    TensorBoard keeps a scalar in 32 bits, so values are rounded to float32. The samples behind an
    evaluation have no place there. A text says which tag is what, so that `convert` reads it back.
    Raises ConvertError when `folder` holds event files already, or the run holds no rows.
    """
    need_tensorboard()
    if folder.is_dir() and any(is_event_file(path) for path in folder.iterdir()):
        raise ConvertError(f"{folder}: holds event files already, which would be shown as one run")
    if folder.exists() and not folder.is_dir():
        raise ConvertError(f"{folder}: is a file; event files go into a folder")
    rows, layout = _rows(run)
    if rows.empty:
        raise ConvertError(f"{run.path}: holds no table to export")
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    final = folder / f"events.out.tfevents.{int(now):010d}.stabkit.{os.getpid()}.0"
    with whole(final) as file:
        _write(file, rows, [*_texts(run), (0, LAYOUT, json.dumps(layout))], now)
    return len(layout["tags"])


def _rows(run: StoredRun) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return columns step, tag, value; and the layout: layers in depth order, what each tag is."""
    tags: dict[str, dict[str, Any]] = {}
    parts: list[pd.DataFrame] = []

    def add(tag: str, facts: dict[str, Any], steps: Any, values: Any) -> None:
        while tag in tags:
            tag += "_"  # a scalar may have the name of a layer's signal
        tags[tag] = facts
        parts.append(pd.DataFrame({"step": steps, "tag": tag, "value": values}))

    layers = stored_table(run.dir.table("layers"), "layers")
    order = run.signals().drop_duplicates("layer")["layer"].astype(str).tolist()
    for signal in [name for name in layers.column_names if name not in KEYS]:
        # Read as stored: a gradient that is NaN was measured, one that is null was not.
        known = layers.filter(layers[signal].is_valid())
        frame = known.select(["step", "layer", signal]).to_pandas()
        for layer, rows in frame.groupby("layer", observed=True):
            facts = {"table": "layers", "name": str(layer), "signal": signal}
            add(f"{signal}/{layer}", facts, rows["step"], rows[signal])
    for name, rows in run.scalars().groupby("name", observed=True):
        add(str(name), {"table": "scalars", "name": str(name)}, rows["step"], rows["value"])
    evals = run.evals()
    for metric, of_metric in evals.groupby("metric", observed=True):
        several = of_metric["k"].nunique() > 1
        for k, rows in of_metric.groupby("k"):
            tag = f"{metric}/k={k}" if several else str(metric)
            facts = {"table": "evals", "name": str(metric), **_facts(rows)}
            add(tag, facts, rows["step"], rows["value"])
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return frame, {"layers": order, "tags": tags}


def _facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the facts that are known and the same for all evaluations of a metric."""
    facts = {name: rows[name].iloc[0] for name in FACTS if rows[name].nunique(dropna=False) == 1}
    return {name: FACTS[name](value) for name, value in facts.items() if not math.isnan(value)}


def _texts(run: StoredRun) -> Iterator[tuple[int, str, str]]:
    """Yield (step, tag, text) of every entry of the log; an entry without a step stands at 0."""
    for event in run.log_entries():
        step = event.get("step")
        facts = {name: value for name, value in event.items() if name not in ("time", "step")}
        yield step if isinstance(step, int) else 0, "events", json.dumps(facts)


def _write(
    file: BinaryIO, rows: pd.DataFrame, texts: list[tuple[int, str, str]], now: float
) -> None:
    """Write one event per step with all values: a third of the size and time of single events."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    writer = RecordWriter(file)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for step, tag, text in texts:
        event = Event(wall_time=now, step=step)
        value = event.summary.value.add(tag=tag)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = 7  # DT_STRING
        value.tensor.string_val.append(text.encode())
        writer.write(event.SerializeToString())
    for step, at_step in rows.groupby("step", sort=True):
        event = Event(wall_time=now, step=int(step))
        for tag, number in zip(at_step["tag"], at_step["value"], strict=True):
            event.summary.value.add(tag=tag, simple_value=_float32(number))
        writer.write(event.SerializeToString())


def _float32(number: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(number))
