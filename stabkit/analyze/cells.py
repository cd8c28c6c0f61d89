"""Group runs into the cells of a grid, and say in words what sets a cell or a run apart."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.printing import one_line

WORDS = {
    "optim.lr": "base lr",
    "train.batch": "batch",
    "branch.change": "branch:",
    "fault.until": "fault until step",
    "method.name": "method",
    "model.name": "model",
    "optim.name": "optimizer",
    "optim.beta2": "β2",
    "optim.weight_decay": "weight decay",
}
# What tells replicates of a cell apart: the seed, or the nudge of a branch.
REPLICATES = ("seed", "branch.nudge")
FROZEN = {False: "learned patch projection", True: "frozen patch projection"}


@dataclass(frozen=True)
class Cell:
    """The runs that differ in their seed alone, in seed order."""

    settings: Mapping[str, Any]
    runs: tuple[Diagnosis, ...]


def group_cells(runs: Diagnoses) -> list[Cell]:
    """Return the cells, ordered by their settings; numbers are ordered by size.

    A run without a configuration, for example a converted log, is a cell of its own.
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
    """Return the settings that tell cells apart, without those that follow from another.

    If each batch size has its own number of steps, one of the two settings is enough. The one that
    has a name in `WORDS` is kept.
    """
    keys = [key for key in runs.factors() if key not in REPLICATES]

    def groups(chosen: Sequence[str]) -> int:
        return len({repr([run.settings.get(key) for key in chosen]) for run in runs})

    for key in sorted(reversed(keys), key=lambda key: key in WORDS):
        rest = [other for other in keys if other != key]
        if groups(rest) == groups(keys):
            keys = rest
    return keys


def curve_factor(cells: Sequence[Cell]) -> str | None:
    """Return the setting with the most values. It tells the curves of one panel apart."""
    keys = list(cells[0].settings) if cells else []
    return max(keys, key=lambda k: len({c.settings[k] for c in cells}), default=None)


def label(key: str, value: Any) -> str:
    """Return a setting and its value in words.

    For example `base lr 0.016` or `frozen patch projection`.
    """
    if key == "model.freeze_patch_embed" and value in FROZEN:
        return FROZEN[value]
    if key == "fault.until" and value == 0:
        return "no fault"
    name = WORDS.get(key, key.rsplit(".", 1)[-1].replace("_", " "))
    return one_line(f"{name} not set" if value is None else f"{name} {value}")


def cell_label(cell: Cell, without: str | None = None) -> str:
    """Return the settings of a cell in words.

    Without any it is the name of its run, or that of the folder of its runs if there are several.
    """
    first = cell.runs[0]
    name = one_line(first.name if len(cell.runs) == 1 else first.path.absolute().parent.name)
    if not first.settings:
        return name
    words = [
        label(key, value)
        for key, value in cell.settings.items()
        if key != without and (without or key in first.settings)  # what a run lacks is no setting
    ]
    return ", ".join(words) or ("" if without else name)


def hashable(value: Any) -> Any:
    """Return a setting as a dictionary key. The settings of other programs may be lists."""
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
    """Return the cell in words, with the seed if the cell has several runs."""
    seed = f", seed {run.settings.get('seed')}" if len(cell.runs) > 1 else ""
    return cell_label(cell) + seed


def wrapped(text: str, width: int = 34) -> str:
    """Return a label in at most three lines of `width` characters, broken after commas."""
    lines = [""]
    # each part keeps its comma, so that names are unchanged
    for part in re.findall(r"(?:[^,]|,(?=\d))*,?\s*", text):
        if len((lines[-1] + part).rstrip(", ")) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    broken = (textwrap.wrap(line.strip().rstrip(","), width) for line in lines)
    whole = [chunk for chunks in broken for chunk in chunks]
    return "\n".join(whole if len(whole) <= 3 else [*whole[:2], f"{whole[2][: width - 1]}…"])
