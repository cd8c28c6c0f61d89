"""Cells against the folders that exist: what is done, what runs, what is left to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stabkit.rundir import RunDir, Standing
from stabkit.sweep.grid import Cell


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
        tasks.append(Task(cell, rundir, rundir.standing()))
    return tasks
