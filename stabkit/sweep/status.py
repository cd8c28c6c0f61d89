"""Runs and how they stand, from their files alone."""

from dataclasses import dataclass
from pathlib import Path

from stabkit.rundir import RunDir, Status, find_runs


@dataclass(frozen=True)
class Row:
    """One run: `state` as written, or `interrupted` when its process is gone."""

    run: str
    state: str
    step: int
    steps: int
    images_per_s: float | None
    eta_s: float | None
    knn: float | None
    reason: str | None


def status_rows(folder: Path) -> list[Row]:
    """Every run below `folder`. Raises FileNotFoundError."""
    return [status_row(RunDir(path), str(path.relative_to(folder))) for path in find_runs(folder)]


def status_row(rundir: RunDir, name: str) -> Row:
    try:
        status = rundir.read_status() or Status("waiting")
        state: str = status.state
        if status.state == "running":
            state = rundir.standing()
    except ValueError as error:
        return Row(name, "unreadable", 0, 0, None, None, None, str(error))
    return Row(
        name if name != "." else rundir.path.name,
        state,
        status.step,
        status.steps,
        status.images_per_s,
        status.eta_s if state == "running" else None,
        status.knn,
        status.reason,
    )
