"""Count the values in the peers' own files."""

import importlib
from pathlib import Path

from stabkit.convert.wandb_file import wandb_records


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


def wandb_values(path: Path) -> int:
    """Return the number of scalars and histograms that an offline run logged.

    A histogram is several items of a record, `NAME._type` among them: it counts once. Names that
    begin with `_`, such as `_step`, are W&B's own and do not count.
    """
    notes: list[str] = []
    count = 0
    for record in wandb_records(path, notes):
        names = [name for name in record if not name.startswith("_")]
        histograms = {name.removesuffix("._type") for name in names if name.endswith("._type")}
        inside = [n for n in names if any(n.startswith(f"{h}.") for h in histograms)]
        count += len(histograms) + len(names) - len(inside)
    if notes:
        raise ValueError(f"{path}: {'; '.join(notes)}")
    return count
