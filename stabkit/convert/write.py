"""Converted runs on disk: all of them, or none."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabkit.convert.layers import layer_arrays
from stabkit.convert.mapping import ConversionPlan
from stabkit.convert.nonfinite import nonfinite_events
from stabkit.convert.series import ConvertError
from stabkit.rundir import RunDir, hidden_folder
from stabkit.store.writer import Writer
from stabkit.version import __version__


@dataclass(frozen=True)
class Converted:
    """A run folder, written or planned: where it is or would be, its format, and its plan."""

    folder: Path
    format: str
    plan: ConversionPlan


def folder_names(names: Sequence[str]) -> list[str]:
    """Return a folder name for each run, all different, without separators and never hidden."""
    taken: dict[str, None] = {}
    for name in names:
        plain = re.sub(r"[^\w.,=+-]", "_", name).lstrip(".")[:100] or "run"
        number, free = 2, plain
        while free in taken:
            number, free = number + 1, f"{plain}-{number}"
        taken[free] = None
    return list(taken)


def write_all(source: Path, out: Path, converted: Sequence[Converted], force: bool = False) -> None:
    """Write everything under a hidden name next to `out`, then rename it: whole, or not there.

    With `force` what lies at `out` is replaced, and removed when the new runs are in its place.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(out) as hidden:
        for run in converted:
            _write(source, hidden / run.folder.relative_to(out), run)
        if force and out.is_dir() and any(out.iterdir()):
            with hidden_folder(out) as former:
                out.rename(former / "replaced")
                try:
                    _put(hidden, out)
                except (OSError, ConvertError):
                    if not os.path.lexists(out):
                        (former / "replaced").rename(out)
                    raise
        else:
            _put(hidden, out)


def _put(hidden: Path, out: Path) -> None:
    try:
        hidden.rename(out)
    except OSError as error:
        if not os.path.lexists(out):
            raise  # the disk failed
        # something has been put there in the meantime
        raise ConvertError(f"{out}: cannot be put there ({error.strerror})") from None


def _write(source: Path, folder: Path, run: Converted) -> None:
    writer = Writer(folder, folder.name)
    plan = run.plan
    if plan.layers.names:
        steps, values, missing = layer_arrays(plan.layers)
        writer.add_layers(steps, plan.layers.names, values, missing)
    for name, one in plan.scalars.items():
        writer.add_scalars(one.steps, name, one.values)
    for metric, evaluations in plan.evals.items():
        for e in evaluations:
            writer.add_accuracies(
                e.series.steps, metric, e.series.values, e.chance, e.n, e.k, e.temperature
            )
    writer.flush()
    rundir = RunDir(folder)
    rundir.write_meta({"converted": _origin(source, run)})
    for kind, step, names in nonfinite_events(plan):
        rundir.append_entry(kind, step, **names)


def _origin(source: Path, run: Converted) -> dict[str, Any]:
    return {
        "source": source.name,
        "format": run.format,
        "stabkit": __version__,
        "went": [list(row) for row in run.plan.went],
        "left_out": run.plan.left_out,
        "notes": run.plan.notes,
        "silent": run.plan.silent,
    }
