"""Put evaluations on the steps of the training: some loggers count them in another unit.

mmcv writes `mode: val` rows whose `iter` counts validation batches. mmengine writes the epoch into
the `step` of a validation row, where that of a training row is the iteration. Both follow the last
training row, so they stand at its step. Other loggers write the step of the training.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stabkit.printing import counted

Record = Mapping[str, Any]
COUNTERS = ("epoch", "iter", "step")


def on_one_axis(records: Iterable[Record], notes: list[str]) -> Iterator[Record]:
    """Yield the records; those of an evaluation at the last training step, under `val/…`."""
    last: dict[str, Any] = {}
    moved = 0
    for record in records:
        if record.get("mode") in ("val", "test"):
            own = {k: v for k, v in record.items() if k not in ("mode", *COUNTERS)}
            at = last or {k: record[k] for k in ("epoch",) if k in record}
            if _has_own_step(record, last):
                at = {k: record[k] for k in COUNTERS if k in record}
            else:
                moved += 1
            yield {**at, **{f"{record['mode']}/{name}": value for name, value in own.items()}}
        elif _counts_epochs(record, last):
            moved += 1
            yield {**last, **{f"val/{k}": v for k, v in record.items() if k != "step"}}
        else:
            found = {name: record[name] for name in COUNTERS if record.get(name) is not None}
            last = found or last
            yield record
    if moved:
        notes.append(
            f"{counted(moved, 'row')} of evaluations, under val/ or test/: at the step of the last "
            "row of training, since their own counts something else"
        )


def _has_own_step(record: Record, last: Mapping[str, Any]) -> bool:
    """Return whether a row of an evaluation has the step of the training, and not of its own."""
    step, epoch = record.get("step"), record.get("epoch", last.get("epoch"))
    if step is None or "iter" in record:
        return False
    return bool(step != epoch or step >= last.get("step", step))


def _counts_epochs(record: Record, last: Mapping[str, Any]) -> bool:
    """Return whether `step` is the epoch of the last training row, as mmengine writes it."""
    return (
        len(last) == len(COUNTERS)
        and "step" in record
        and not record.keys() & {"epoch", "iter"}
        and record["step"] == last["epoch"]
    )
