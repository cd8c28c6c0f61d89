"""Cells against the folders that exist: what is done, what runs, what is left to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stabkit.rundir import RunDir
from stabkit.sweep.grid import Cell

Standing = Literal["missing", "done", "running", "interrupted", "failed"]


@dataclass(frozen=True)
class Task:
    """A cell, its folder and how it stands there."""

    cell: Cell
    rundir: RunDir
    standing: Standing


def reconcile(cells: Sequence[Cell], folder: Path) -> list[Task]:
    """In the order of the cells. Reads only."""
    tasks = []
    for cell in cells:
        rundir = RunDir(folder / cell.folder)
        tasks.append(Task(cell, rundir, standing_of(rundir)))
    return tasks


def standing_of(rundir: RunDir) -> Standing:
    """What became of a run. A run whose process is gone is interrupted, whatever it last wrote."""
    status = rundir.read_status()
    if status is not None and status.state in ("done", "failed"):
        return status.state
    if rundir.is_busy():
        return "running"
    return "interrupted" if status is not None and status.state == "running" else "missing"
