"""Runs as the cells of a grid: which settings differ, how a cell is called, how it is drawn."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.printing import one_line

WORDS = {
    "optim.lr": "base lr",
    "train.batch": "batch",
    "method.name": "method",
    "model.name": "model",
    "optim.name": "optimizer",
    "optim.beta2": "β2",
    "optim.weight_decay": "weight decay",
}
FROZEN = {False: "learned patch projection", True: "frozen patch projection"}


@dataclass(frozen=True)
class Cell:
    """The runs that differ in their seed alone, in seed order."""

    settings: Mapping[str, Any]
    runs: tuple[Diagnosis, ...]


def group_cells(runs: Diagnoses) -> list[Cell]:
    """Cells in the order of their settings, numbers by size.

    A run without a configuration, as of a Monitor or a converted log, is a cell of its own.
    """
    factors = _telling(runs)
    groups: dict[tuple[Any, ...], list[Diagnosis]] = {}
    for run in runs:
        values = [hashable(run.settings.get(key)) for key in factors]
        alone = [] if run.settings else [run.path]
        groups.setdefault((*values, *alone), []).append(run)
    cells = [
        Cell(dict(zip(factors, values, strict=False)), tuple(sorted(members, key=_seed)))
        for values, members in groups.items()
    ]
    return sorted(cells, key=lambda cell: [_order(v) for v in cell.settings.values()])


def _telling(runs: Diagnoses) -> list[str]:
    """The settings that tell cells apart, without those that only go along with another.

    Where a batch size brings its own number of steps, the one with a word of its own is kept.
    """
    keys = [key for key in runs.factors() if key != "seed"]

    def groups(chosen: Sequence[str]) -> int:
        return len({repr([run.settings.get(key) for key in chosen]) for run in runs})

    for key in sorted(reversed(keys), key=lambda key: key in WORDS):
        rest = [other for other in keys if other != key]
        if groups(rest) == groups(keys):
            keys = rest
    return keys


def curve_factor(cells: Sequence[Cell]) -> str | None:
    """The setting that tells curves of one panel apart: the one with the most values."""
    keys = list(cells[0].settings) if cells else []
    return max(keys, key=lambda k: len({c.settings[k] for c in cells}), default=None)


def label(key: str, value: Any) -> str:
    """`base lr 0.016`, `frozen patch projection`, or the setting's own name and value."""
    if key == "model.freeze_patch_embed" and value in FROZEN:
        return FROZEN[value]
    return one_line(f"{WORDS.get(key, key.rsplit('.', 1)[-1].replace('_', ' '))} {value}")


def cell_label(cell: Cell, without: str | None = None) -> str:
    """The cell's settings in words; its run's name when nothing differs or it has none."""
    if not cell.runs[0].settings:
        return one_line(cell.runs[0].name)
    words = [label(key, value) for key, value in cell.settings.items() if key != without]
    return ", ".join(words) or ("" if without else one_line(cell.runs[0].name))


def hashable(value: Any) -> Any:
    """As a key: settings of somebody else's configuration may be lists of anything."""
    if isinstance(value, list):
        return tuple(map(hashable, value))
    return repr(value) if isinstance(value, dict) else value


def _seed(run: Diagnosis) -> tuple[float, str]:
    seed = run.settings.get("seed")
    return seed if isinstance(seed, (int, float)) else 0, run.name


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, (int, float)):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def run_label(cell: Cell, run: Diagnosis) -> str:
    """The cell in words, and the seed where several runs differ in nothing else."""
    seed = f", seed {run.settings.get('seed')}" if len(cell.runs) > 1 else ""
    return cell_label(cell) + seed


def wrapped(text: str, width: int = 34) -> str:
    """A label in at most three lines of `width`, broken after commas where that is possible."""
    lines = [""]
    for part in re.findall(r"[^,]*,?\s*", text):  # with its comma, so that names stay as they are
        if len((lines[-1] + part).rstrip(", ")) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    broken = (textwrap.wrap(line.strip().rstrip(","), width) for line in lines)
    whole = [chunk for chunks in broken for chunk in chunks]
    return "\n".join(whole if len(whole) <= 3 else [*whole[:2], f"{whole[2][: width - 1]}…"])
